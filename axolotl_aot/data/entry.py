"""An entry of `datasets:` or `test_datasets:`: where its rows come from, and the options of every type.

A type is a subclass of `Entry`: its fields are the options that it takes, its `examples` reads a row.
"""

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, model_validator

from axolotl_aot.data.rows import BadRow, Example, number, require_field
from axolotl_aot.errors import AOTDataError

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

# Options that say which rows are read: axolotl's own, and its loader takes them.
SOURCE = (
    "path",
    "name",
    "split",
    "ds_type",
    "data_files",
    "revision",
    "trust_remote_code",
    "shards",
    "shards_idx",
)

PICKLE = "pandas"  # the one kind of file that `datasets` unpickles

# The names under which a column is looked for where the entry does not name it; the first one found is taken.
USUAL_COLUMNS = {
    "field_messages": (
        "messages",
        "conversation",
        "conversations",
        "prompt",
        "instruction",
        "question",
        "input",
    ),
    "field_text_prompt": ("text_prompt",),
    "field_system": ("system",),
    "field_tools": ("tools",),
    "field_completion": ("completion", "response", "answer", "output"),
    "field_completions": ("completions", "responses", "answers", "candidates"),
    "field_chosen": ("chosen", "chosen_response"),
    "field_rejected": ("rejected", "rejected_response"),
    "field_label": ("label",),
    "field_score": ("score", "scores", "overall_score", "rating", "ratings"),
    "field_rank": ("rank", "ranks", "ranking"),
}

Value = bool | int | float | str


def _plain(value: Any) -> Any:
    return value.strip().lower() if isinstance(value, str) else value


def _as_number(value: Any) -> Any:
    """The number that a text is written for; other values as they are."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _as_bool(value: Any) -> Any:
    return {"true": True, "false": False}.get(_plain(value), value)


# What else a label may mean in a source that knows nothing but text.
TEXT_READINGS = (_as_number, _as_bool)


def _listed(values: list[Any]) -> str:
    return ", ".join(str(value) for value in values)


class LabelValues(BaseModel):
    """Which values of the label column mean a good completion, and which a bad one."""

    model_config = ConfigDict(extra="forbid")
    positive: list[Value]
    negative: list[Value]

    @model_validator(mode="before")
    @classmethod
    def _is_mapping(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            raise ValueError("write `label_values: {positive: [...], negative: [...]}`")
        return value

    @model_validator(mode="after")
    def _no_value_twice(self) -> "LabelValues":
        both = set(map(_plain, self.positive)) & set(map(_plain, self.negative))
        if both:
            raise ValueError(f"{_listed(list(both))}: positive and negative at once")
        return self

    @cached_property
    def meaning(self) -> dict[Value, bool]:
        """Whether a value is positive; for text in lower case, without space around it."""
        meaning = {_plain(value): False for value in self.negative}
        return meaning | {_plain(value): True for value in self.positive}


USUAL_LABELS = LabelValues(
    positive=[
        True,
        1,
        "true",
        "1",
        "good",
        "positive",
        "up",
        "thumbs_up",
        "👍",
        "chosen",
        "desirable",
        "yes",
    ],
    negative=[
        *(False, 0, -1, "false", "0", "-1", "bad", "negative", "down", "thumbs_down", "👎", "rejected"),
        *("undesirable", "no"),
    ],
)


class Source(NamedTuple):
    """What a type may need before it reads rows: the data set, the run, and the entries beside its own.

    position: of the entry in `datasets:` or `test_datasets:`. entries: all of that list, with the options
    that axolotl knows. text_only: whether the source, such as a CSV file, knows nothing but text. where: the
    entry's name in messages.
    """

    dataset: "Dataset"
    cfg: Any
    position: int
    entries: list[dict[str, Any]]
    tokenizer: "PreTrainedTokenizerBase"
    text_only: bool = False
    where: str = ""


class Entry(BaseModel):
    """What every type takes. Subclasses add their own options, and read rows."""

    model_config = ConfigDict(extra="forbid")
    # options whose columns a data set may lack; without one of the others it is refused
    optional: ClassVar[set[str]] = set()

    path: str
    type: str | dict[str, Any] | None = None
    name: str | list[str] | None = None
    split: str | None = None
    ds_type: str | None = None
    data_files: str | list[str] | None = None
    revision: str | None = None
    trust_remote_code: bool | None = None
    shards: int | None = Field(default=None, ge=1)
    shards_idx: int | None = Field(default=None, ge=0)
    on_bad_rows: Literal["error", "drop"] = "error"
    field_weight: str | None = None
    _text_only: bool = PrivateAttr(default=False)  # as in `Source`

    @model_validator(mode="after")
    def _shards_are_set(self) -> "Entry":
        if self.shards_idx is not None and self.shards is None:
            raise ValueError(f"`shards_idx: {self.shards_idx}` needs `shards`, their number")
        return self

    @model_validator(mode="after")
    def _is_no_pickle(self) -> "Entry":
        if self.ds_type == PICKLE:
            raise ValueError(
                f"`ds_type: {PICKLE}` reads pickles, which may run any code when they are read: write the "
                "rows as Parquet or JSON Lines"
            )
        return self

    def source(self) -> dict[str, Any]:
        """The options of `SOURCE` that are set."""
        return {key: value for key in SOURCE if (value := getattr(self, key)) is not None}

    def prepare(self, source: Source) -> "tuple[Entry, Dataset]":
        """The entry ready to read rows, and the rows: called once, for what depends on the whole data set.

        Raises:
            AOTDataError: an option names no column of the data set, or does not fit its rows.
        """
        entry = self.resolve_columns(source.dataset.column_names)
        entry._text_only = source.text_only
        return entry, source.dataset

    def resolve_columns(self, columns: list[str]) -> "Entry":
        """The entry with its `field_` options set to columns: those that it names, else the usual ones.

        Raises:
            AOTDataError: a column that it names, or must have, is not there.
        """
        update = {}
        for option in type(self).model_fields:
            if not option.startswith("field_"):
                continue
            given = getattr(self, option)
            if given is not None and given not in columns:
                close = get_close_matches(given, columns, n=1)
                hint = f" Did you mean {close[0]!r}?" if close else ""
                raise AOTDataError(
                    f"`{option}: {given}`: there is no such column. Columns: {', '.join(columns)}.{hint}"
                )
            usual = USUAL_COLUMNS.get(option, ())
            if given is None and usual:
                update[option] = next((name for name in usual if name in columns), None)
                if update[option] is None and option not in self.optional:
                    raise AOTDataError(
                        f"no column is called {' or '.join(usual)}; set `{option}`. Columns: "
                        f"{', '.join(columns)}."
                    )
        return self.model_copy(update=update)

    def examples(self, row: Mapping[str, Any]) -> Iterator[Example | BadRow]:
        """The samples of one row, those to be left out included (`label` None).

        Of a row that was put together from several, also why some of these cannot be used.

        Raises:
            BadRow: the row cannot be used.
        """
        raise NotImplementedError

    def code_digest(self) -> str | None:
        """A digest of code of the user's own that reads the rows; None where there is none."""
        return None

    def answer_columns(self) -> tuple[str, ...]:
        """The columns of the chosen and the rejected answer, where each row has one of both."""
        return ()

    def number(self, value: Any, field: str) -> float:
        """A finite number; of a source that knows nothing but text, also one that is written as text.

        Raises:
            BadRow: it is none.
        """
        return number(_as_number(value) if self._text_only else value, field)

    def weight(self, row: Mapping[str, Any]) -> float:
        """The row's weight, above 0; 1 where the entry names no column."""
        if self.field_weight is None:
            return 1.0
        weight = self.number(require_field(row, self.field_weight), self.field_weight)
        if weight <= 0:
            raise BadRow(f"field `{self.field_weight}`: the weight {weight:g} is not above 0")
        return weight


class LabelledEntry(Entry):
    """A type whose rows say whether they are good: by a column, or all of them by `label:`."""

    label: bool | None = None
    field_label: str | None = None
    label_values: LabelValues | None = None

    @model_validator(mode="after")
    def _one_label(self) -> "LabelledEntry":
        if self.label is not None and (self.field_label is not None or self.label_values is not None):
            other = "field_label" if self.field_label is not None else "label_values"
            raise ValueError(
                f"`label: {str(self.label).lower()}` and `{other}`: the label is either the whole entry's or "
                "a column's; remove one"
            )
        return self

    def label_of(self, row: Mapping[str, Any]) -> bool:
        """Whether the row's completion is a good one.

        Raises:
            BadRow: the row has no label, or one of unknown meaning.
        """
        if self.label is not None:
            return self.label
        field = self.field_label or "label"
        value = require_field(row, field)
        values = self.label_values or USUAL_LABELS
        readings = [value, *(as_value(value) for as_value in TEXT_READINGS if self._text_only)]
        for reading in readings:
            meaning = values.meaning.get(_plain(reading)) if isinstance(reading, Value) else None
            if meaning is not None:
                return meaning
        known = f"{_listed(values.positive)} (positive) and {_listed(values.negative)} (negative)"
        raise BadRow(
            f"field `{field}`: the label {value!r} is none of {known}; set "
            "`label_values: {positive: [...], negative: [...]}`"
        )
