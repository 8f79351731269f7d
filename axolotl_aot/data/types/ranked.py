"""`type: ranked`: a prompt with several completions, ranked or scored."""

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import pyarrow as pa
from pydantic import model_validator

from axolotl_aot.data.entry import USUAL_COLUMNS, Source
from axolotl_aot.data.files.json_columns import encoded, with_json_columns
from axolotl_aot.data.messages import TemplateEntry
from axolotl_aot.data.rows import ROW_NUMBERS, BadRow, Example, Message, formatted_text, require_field
from axolotl_aot.data.thresholds import Cut, Thresholds
from axolotl_aot.errors import AOTDataError

if TYPE_CHECKING:
    from datasets import Dataset

# Where a completion is a mapping, the keys under which its text is looked for.
TEXT_KEYS = (*USUAL_COLUMNS["field_completion"], "text", "content")
# Options that name a column, or a key of each completion's mapping.
COLUMNS_OR_KEYS = ("field_completion", "field_score", "field_rank")
ALL_LEFT_OUT = Cut(upper=None, lower=None)


class Candidate(NamedTuple):
    """One of a prompt's completions. score: its own, or minus its rank. row: as in `BadRow`."""

    prompt: list[Message] | str
    completion: list[Message] | str
    score: float
    weight: float
    row: int | None = None


class RankedEntry(TemplateEntry):
    """What both kinds of training read of a ranking.

    `field_completions` is a column of lists. Each item is a text, a message, or a mapping with the text
    and its score or rank; the scores or ranks may also be a column of lists of their own. Plain texts
    or messages without either are ranked by their order, the best first. Without such a column, each row
    holds one completion, and the rows of one prompt are put together.

    `field_text_prompt` is a column of prompts that are formatted already; their completions are texts that
    follow them as they stand, and no chat template is applied.
    """

    optional: ClassVar = {
        *TemplateEntry.optional,
        *COLUMNS_OR_KEYS,
        "field_completions",
        "field_text_prompt",
    }
    may_be_text: ClassVar = True

    field_completions: str | None = None
    field_completion: str | None = None
    field_score: str | None = None
    field_rank: str | None = None
    field_text_prompt: str | None = None

    needs_scores: ClassVar = False

    @model_validator(mode="after")
    def _scores_or_ranks(self) -> "RankedEntry":
        if self.field_score is not None and self.field_rank is not None:
            raise ValueError("set `field_score` or `field_rank`, not both")
        return self

    def resolve_columns(self, columns: list[str]) -> "RankedEntry":
        keys = {
            name: value for name in COLUMNS_OR_KEYS if (value := getattr(self, name)) not in (None, *columns)
        }
        entry = super(RankedEntry, self.model_copy(update=dict.fromkeys(keys))).resolve_columns(columns)
        return entry._with_one_prompt(named=self.field_text_prompt is not None).model_copy(update=keys)

    def _with_one_prompt(self, named: bool) -> "RankedEntry":
        """The entry with messages or with formatted text. named: whether the entry names a column of text."""
        if self.field_text_prompt is None or self.field_messages is None:
            return self
        if named:
            raise AOTDataError(
                f"`field_text_prompt: {self.field_text_prompt}` is the prompt, and so is the column "
                f"`{self.field_messages}`; remove one of the two"
            )
        return self.model_copy(update={"field_text_prompt": None})

    def needs_template(self) -> bool:
        return self.field_text_prompt is None

    def prepare(self, source: Source) -> "tuple[RankedEntry, Dataset]":
        entry, dataset = super().prepare(source)
        if entry.field_completions is None:
            return entry._put_together(dataset)
        # a column that was found by its usual name belongs to the list of completions only if it holds lists
        other = [
            name
            for name in COLUMNS_OR_KEYS
            if getattr(self, name) is None and not _is_list(dataset, entry, name)
        ]
        return entry.model_copy(update=dict.fromkeys(other)), dataset

    def _put_together(self, dataset: "Dataset") -> "tuple[RankedEntry, Dataset]":
        """One row per prompt, from rows of one completion each."""
        from datasets import Dataset

        value = self.field_score or self.field_rank
        columns = dataset.column_names
        if not {self.field_messages, self.field_completion, value} <= set(columns):
            lists = ", ".join(USUAL_COLUMNS["field_completions"])
            raise AOTDataError(
                f"`type: ranked` finds neither a column with the completions of a prompt ({lists}; or set "
                "field_completions), nor a prompt, a completion and a score or rank in each row "
                "(field_messages, field_completion, field_score or field_rank). Columns: "
                f"{', '.join(columns)}."
            )
        per_prompt = [c for c in (self.field_messages, self.field_system, self.field_tools) if c]
        per_completion = [c for c in (self.field_completion, value, self.field_weight) if c]
        grouped: dict[str, dict[str, Any]] = {}
        for i, row in enumerate(dataset.select_columns([*per_prompt, *per_completion]), start=1):
            prompt = {column: row[column] for column in per_prompt}
            empty = {**prompt, **{column: [] for column in per_completion}, ROW_NUMBERS: []}
            group = grouped.setdefault(json.dumps(list(prompt.values()), default=str), empty)
            group[ROW_NUMBERS].append(i)
            for column in per_completion:
                group[column].append(row[column])
        # the completions of one prompt may be of several types
        columns = [*per_prompt, *per_completion]
        table = {
            column: [
                encoded(group[column]) if column in columns else group[column] for group in grouped.values()
            ]
            for column in (*columns, ROW_NUMBERS)
        }
        entry = self.model_copy(update={"field_completions": self.field_completion, "field_completion": None})
        return entry, with_json_columns(Dataset.from_dict(table), columns)

    def candidates(self, row: Mapping[str, Any]) -> tuple[list[Candidate], list[BadRow]]:
        """The row's completions, the prompt's system message included.

        Of a row that was put together from several, those that can be used, and why the others cannot.
        """
        if ROW_NUMBERS in row:
            return self._candidates_of_rows(row)
        items = require_field(row, self.field_completions)
        if not isinstance(items, list) or len(items) < 2:
            raise BadRow(f"field `{self.field_completions}`: a ranking needs two completions or more")
        scores, weight = self._scores(row, items), self.weight(row)
        return [self._candidate(row, *pair, weight) for pair in zip(items, scores, strict=True)], []

    def _candidates_of_rows(self, row: Mapping[str, Any]) -> tuple[list[Candidate], list[BadRow]]:
        """Each completion with the score and the weight of its own row."""
        option, sign = ("field_score", 1) if self.field_score else ("field_rank", -1)
        field = getattr(self, option)
        candidates, bad = [], []
        for i, number in enumerate(row[ROW_NUMBERS]):
            own = {**row, field: row[field][i], self.field_completions: row[self.field_completions][i]}
            if self.field_weight:
                own[self.field_weight] = row[self.field_weight][i]
            try:
                self._require_scores(sign)
                score = sign * self.number(own[field], field)
                item = require_field(own, self.field_completions)
                candidates.append(self._candidate(row, item, score, self.weight(own), number))
            except BadRow as reason:
                bad.append(BadRow(str(reason), number))
        return candidates, bad

    def _candidate(
        self, row: Mapping[str, Any], item: Any, score: float, weight: float, number: int | None = None
    ) -> Candidate:
        if self.field_text_prompt:
            prompt = formatted_text(require_field(row, self.field_text_prompt), self.field_text_prompt)
            completion = formatted_text(self._text(item), self.field_completions)
            return Candidate(prompt, completion, score, weight, number)
        leading_messages, completion = self.completion(self._text(item), self.field_completions)
        return Candidate(self.prompt(row, leading_messages), completion, score, weight, number)

    def _require_scores(self, sign: int) -> None:
        if sign < 0 and self.needs_scores:
            raise BadRow(
                "positive_above and negative_below need scores, and there are none; "
                "set field_score, or positive_top and negative_bottom"
            )

    def _text(self, item: Any) -> Any:
        """The completion itself, of a mapping that also holds its score, say."""
        if item is None:
            raise BadRow(f"field `{self.field_completions}`: one of the completions is null")
        if not isinstance(item, Mapping) or "role" in item or "from" in item:
            return item
        for key in (self.field_completion,) if self.field_completion else TEXT_KEYS:
            if item.get(key) is not None:
                return item[key]
        raise BadRow(
            f"field `{self.field_completions}`: no text in a completion with {', '.join(item)}; set "
            "field_completion"
        )

    def _scores(self, row: Mapping[str, Any], items: list[Any]) -> list[float]:
        """Score, or minus rank, of each completion: of a column of lists, or of its mapping, or its place."""
        for option, sign in (("field_score", 1), ("field_rank", -1)):
            given = getattr(self, option)
            self._require_scores(sign)
            if given is not None and isinstance(row.get(given), list):
                values = row[given]
                if len(values) != len(items):
                    raise BadRow(
                        f"field `{given}`: {len(values)} values for the {len(items)} completions of "
                        f"`{self.field_completions}`"
                    )
                return [sign * self.number(value, given) for value in values]
            for key in (given,) if given else USUAL_COLUMNS[option]:
                if any(isinstance(item, Mapping) and item.get(key) is not None for item in items):
                    values = [item.get(key) if isinstance(item, Mapping) else None for item in items]
                    return [sign * self.number(value, key) for value in values]
            if given is not None:
                raise BadRow(
                    f"field `{given}`: neither a list of this row, nor in the completions of "
                    f"`{self.field_completions}`"
                )
        if any(isinstance(item, Mapping) and "role" not in item and "from" not in item for item in items):
            raise BadRow(
                f"field `{self.field_completions}`: no score or rank in a completion with "
                f"{', '.join(items[0])}; set field_score or field_rank"
            )
        return [-float(position) for position in range(len(items))]


class Ranked(RankedEntry, Thresholds):
    """For `rl: aot_unpaired`: the best completions are positive, the worst negative, the others left out.

    Shares (`positive_top`, `negative_bottom`) are of one prompt's completions; without any threshold, the
    best and the worst count.
    """

    @property
    def needs_scores(self) -> bool:
        return self.positive_above is not None or self.negative_below is not None

    def examples(self, row: Mapping[str, Any]) -> Iterator[Example | BadRow]:
        (candidates, bad), tools = self.candidates(row), self.tools(row)
        yield from bad
        cut = self._cut_of([candidate.score for candidate in candidates])
        for prompt, completion, score, weight, number in candidates:
            yield Example(prompt, (completion,), cut.label(score), tools, weight, number)

    def _cut_of(self, scores: list[float]) -> Cut:
        if not scores:
            return ALL_LEFT_OUT
        if not self.any_set:
            equal = min(scores) == max(scores)
            return ALL_LEFT_OUT if equal else Cut(upper=max(scores), lower=min(scores))
        try:
            return self.cut(scores)
        except AOTDataError:  # so many scores of this prompt are equal that some would be both
            return ALL_LEFT_OUT


class RankedPairs(RankedEntry):
    """For `rl: aot`: the best completion against the worst; left out where all are equal."""

    def examples(self, row: Mapping[str, Any]) -> Iterator[Example | BadRow]:
        candidates, bad = self.candidates(row)
        yield from bad
        if not candidates:
            return
        best = max(candidates, key=lambda c: c.score)
        worst = min(candidates, key=lambda c: c.score)
        if best.prompt != worst.prompt:
            raise BadRow(f"field `{self.field_completions}`: the best and the worst have different prompts")
        if best.weight != worst.weight:
            raise BadRow(
                f"field `{self.field_weight}`: a pair has one weight, and the best and the worst have "
                f"{best.weight:g} and {worst.weight:g}"
            )
        label = True if best.score > worst.score else None
        completions = (best.completion, worst.completion)
        yield Example(best.prompt, completions, label, self.tools(row), best.weight, best.row)


def _is_list(dataset: "Dataset", entry: RankedEntry, option: str) -> bool:
    """Whether the column that an option of the entry names holds lists, whatever its first rows hold."""
    name = getattr(entry, option)
    if name not in dataset.column_names:
        return False
    kind = dataset.data.schema.field(name).type
    return pa.types.is_list(kind) or pa.types.is_large_list(kind)
