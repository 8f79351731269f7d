"""Batches of rows to batches of tokenized samples, each with what became of it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from datasets import Features, Value
from datasets import List as ListOf

from axolotl_aot.data.entry import Entry
from axolotl_aot.data.rendering import Renderer, Text, Tokens, tokenize
from axolotl_aot.data.rows import FIRST_ROW, ROWS, BadRow, Example
from axolotl_aot.errors import AOTDataError
from axolotl_aot.samples import SAMPLE_TYPES

# The values of the column STATUS: what became of a sample, or, where it is BAD, of a row.
USED, TRUNCATED, TOO_LONG, LEFT_OUT, BAD = range(5)
STATUS = "aot_status"


def features(rl: str, weights: bool) -> Features:
    """The columns of prepared data, and STATUS, which is removed when the samples have been counted."""
    completions = SAMPLE_TYPES[rl].completions
    columns: dict[str, Any] = {name: Value("string") for name in ("prompt", *completions)}
    columns |= {f"{name}_ids": ListOf(Value("int32")) for name in ("prompt", *completions)}
    if not SAMPLE_TYPES[rl].paired:
        columns["label"] = Value("bool")
    if weights:
        columns["weight"] = Value("float32")
    return Features({**columns, STATUS: Value("int8")})


@dataclass
class RowMapper:
    """For `Dataset.map(batched=True, with_indices=True)`: rows in, samples out.

    where: the entry's name in messages. first_row: the number of the data set's first row. columns: of the
    data set, for messages. sequence_len: the most tokens of a prompt and one completion. too_long: what
    happens beyond, axolotl's `excess_length_strategy`. weights: whether samples have a column of weights.
    """

    rl: str
    entry: Entry
    renderer: Renderer
    where: str
    first_row: int
    columns: list[str]
    sequence_len: int
    too_long: str
    weights: bool

    def __call__(self, batch: Mapping[str, list[Any]], indices: list[int]) -> dict[str, list[Any]]:
        """The samples of a batch of rows, each with its STATUS; those that are not used have no tokens.

        Raises:
            AOTDataError: a row that cannot be used, unless `on_bad_rows: drop`; a sample that is too long
                with `excess_length_strategy: raise`.
        """
        out: dict[str, list[Any]] = {name: [] for name in features(self.rl, self.weights)}
        names = list(batch)
        rows = [dict(zip(names, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        samples = []
        for number, row in zip(self._numbers(rows, indices), rows, strict=True):
            try:
                samples += [(number, *sample) for sample in self._samples(row)]
            except BadRow as reason:
                if self.entry.on_bad_rows == "error":
                    raise AOTDataError(
                        f"{self.where}, row {number}: {reason}. Columns: {', '.join(self.columns)}. "
                        "(`on_bad_rows: drop` leaves such rows out and counts them.)"
                    ) from reason
                # the reason is kept in the column of the prompts until the rows are counted
                for _ in range(row.get(ROWS, 1)):
                    self._append(out, BAD, prompt=f"row {number}: {reason}")
        texts = [text for _, _, text in samples if text]
        tokens = iter(tokenize(self.renderer.tokenizer, texts))
        for number, example, text in samples:
            if text is None:
                self._append(out, LEFT_OUT)
            else:
                self._use(out, number, example, text, next(tokens))
        return out

    def _numbers(self, rows: list[dict[str, Any]], indices: list[int]) -> Iterator[int]:
        """The number of each row in its source, from 1."""
        return (
            row.get(FIRST_ROW, index + 1) + self.first_row - 1
            for row, index in zip(rows, indices, strict=True)
        )

    def _samples(self, row: dict[str, Any]) -> list[tuple[Example, Text | None]]:
        """A row's samples, each with its text, unless it is left out."""
        return [
            (example, None if example.label is None else self.renderer.text(example))
            for example in self.entry.examples(row)
        ]

    def _use(
        self, out: dict[str, list[Any]], number: int, example: Example, text: Text, tokens: Tokens
    ) -> None:
        """Append a sample, shortened or without its tokens where it is too long."""
        room = self.sequence_len - len(tokens.prompt)
        completions = [whole[len(text.prompt) :] for whole in text.wholes]
        status, ids = USED, tokens.completions
        longest = max(map(len, ids))
        if longest > room:
            if self.too_long == "raise":
                raise AOTDataError(
                    f"{self.where}, row {number}: {len(tokens.prompt)} tokens of prompt and {longest} of "
                    f"completion exceed `sequence_len: {self.sequence_len}`; set "
                    "`excess_length_strategy: drop` or `truncate`, or a larger sequence_len"
                )
            if self.too_long == "drop" or room < 1:
                self._append(out, TOO_LONG, label=example.label)
                return
            status, ids = TRUNCATED, [each[:room] for each in ids]
            completions = [self.renderer.tokenizer.decode(each) for each in ids]
        named = zip(SAMPLE_TYPES[self.rl].completions, completions, ids, strict=True)
        values = {"prompt": text.prompt, "prompt_ids": tokens.prompt, "label": example.label}
        values["weight"] = example.weight
        for name, completion, completion_ids in named:
            values |= {name: completion, f"{name}_ids": completion_ids}
        self._append(out, status, **values)

    @staticmethod
    def _append(out: dict[str, list[Any]], status: int, **values: Any) -> None:
        for name, column in out.items():
            column.append(status if name == STATUS else values.get(name))
