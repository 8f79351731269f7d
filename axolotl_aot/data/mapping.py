"""Batches of rows to batches of tokenized samples, each with what became of it."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, NamedTuple

from datasets import Features, Value
from datasets import List as ListOf

from axolotl_aot.data.entry import Entry
from axolotl_aot.data.rendering.renderer import Renderer, Text, Tokens, tokenize
from axolotl_aot.data.rows import ROW_NUMBERS, BadRow, Example
from axolotl_aot.errors import AOTDataError
from axolotl_aot.samples import SAMPLE_TYPES

# The values of the column STATUS: what became of a sample, or, where it is BAD, of a row. Samples whose
# answers are the same tokens are told apart by where they became so.
USED, TRUNCATED, TOO_LONG, LEFT_OUT, BAD, EQUAL_IN_FILE, EQUAL_AS_TEXT, EQUAL_BY_CUT = range(8)
STATUS = "aot_status"
# A number that is the same for all samples of a prompt, by which the evaluation set is split off.
PROMPT = "aot_prompt"


def features(rl: str, weights: bool) -> Features:
    """The columns of prepared data, and STATUS, which is removed when the samples have been counted."""
    completions = SAMPLE_TYPES[rl].completions
    columns: dict[str, Any] = {name: Value("string") for name in ("prompt", *completions)}
    columns |= {f"{name}_ids": ListOf(Value("int32")) for name in ("prompt", *completions)}
    if not SAMPLE_TYPES[rl].paired:
        columns["label"] = Value("bool")
    if weights:
        columns["weight"] = Value("float32")
    return Features({**columns, PROMPT: Value("int64"), STATUS: Value("int8")})


class Sample(NamedTuple):
    """An example on its way to tokens. number: of its row, from 1. text: None where it is left out."""

    number: int
    row: dict[str, Any]
    example: Example
    text: Text | None


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
        found: list[list[Sample]] = []
        for index, row in zip(indices, rows, strict=True):
            try:
                samples = list(self._samples(index + 1, row))
            except BadRow as reason:
                for number in row.get(ROW_NUMBERS, [index + 1]):
                    self._refuse(out, number, reason)
                continue
            for bad in samples:
                if isinstance(bad, BadRow):
                    self._refuse(out, bad.row, bad)
            found.append([sample for sample in samples if isinstance(sample, Sample)])
        texts = [sample.text for samples in found for sample in samples if sample.text]
        tokens = iter(tokenize(self.renderer.tokenizer, texts))
        for samples in found:
            self._use(out, [(sample, next(tokens) if sample.text else None) for sample in samples])
        return out

    def _samples(self, number: int, row: dict[str, Any]) -> Iterator[Sample | BadRow]:
        """A row's samples; of a row that was put together from several, also why some cannot be used."""
        for item in self.entry.examples(row):
            if isinstance(item, BadRow):
                yield item
                continue
            try:
                text = None if item.label is None else self.renderer.text(item)
            except BadRow as reason:
                if item.row is None:
                    raise
                yield BadRow(str(reason), item.row)
                continue
            yield Sample(item.row or number, row, item, text)

    def _in_source(self, number: int) -> int:
        """The number in its source of a row of the data set; both from 1."""
        return number + self.first_row - 1

    def _refuse(self, out: dict[str, list[Any]], number: int, reason: BadRow) -> None:
        """Append a bad row, or stop."""
        number = self._in_source(number)
        if self.entry.on_bad_rows == "error":
            raise AOTDataError(
                f"{self.where}, row {number}: {reason}. Columns: {', '.join(self.columns)}. "
                "(`on_bad_rows: drop` leaves such rows out and counts them.)"
            ) from reason
        # the reason is kept in the column of the prompts until the rows are counted
        self._append(out, BAD, prompt=f"row {number}: {reason}")

    def _use(self, out: dict[str, list[Any]], samples: list[tuple[Sample, Tokens | None]]) -> None:
        """Append the samples of a row."""
        fitted = [
            (LEFT_OUT, None) if tokens is None else self._fitted(sample, tokens) for sample, tokens in samples
        ]
        equal = self._equal([ids for _, ids in fitted], [sample.example.label for sample, _ in samples])
        for i, ((sample, tokens), (status, ids)) in enumerate(zip(samples, fitted, strict=True)):
            if i in equal:
                status = self._equality(sample, [t for j, (_, t) in enumerate(samples) if j in equal])
            self._append_sample(out, status, sample, tokens, ids)

    def _equal(self, completions: list[list[list[int]] | None], labels: list[bool | None]) -> set[int]:
        """Which samples of a row compare an answer with itself, by their position."""
        if SAMPLE_TYPES[self.rl].paired:
            return {i for i, ids in enumerate(completions) if ids and ids[0] == ids[1]}
        if len(completions) < 2:
            return set()
        seen: dict[tuple[int, ...], dict[bool | None, list[int]]] = {}
        for i, (ids, label) in enumerate(zip(completions, labels, strict=True)):
            if ids:
                seen.setdefault(tuple(ids[0]), {}).setdefault(label, []).append(i)
        return {
            i for by_label in seen.values() if len(by_label) > 1 for each in by_label.values() for i in each
        }

    def _equality(self, sample: Sample, tokens: list[Tokens]) -> int:
        """Where equal answers became equal. tokens: of the samples that are equal, before any cut."""
        if len({tuple(ids) for each in tokens for ids in each.completions}) > 1:
            return EQUAL_BY_CUT
        answers = [sample.row.get(column) for column in self.entry.answer_columns()]
        if len(answers) == 2 and None not in answers and answers[0] != answers[1]:
            return EQUAL_AS_TEXT
        return EQUAL_IN_FILE

    def _fitted(self, sample: Sample, tokens: Tokens) -> tuple[int, list[list[int]] | None]:
        """A sample's status, and its completions' tokens: shortened, or None where they are too long."""
        room = self.sequence_len - len(tokens.prompt)
        longest = max(map(len, tokens.completions))
        if longest <= room:
            return USED, tokens.completions
        if self.too_long == "raise":
            raise AOTDataError(
                f"{self.where}, row {self._in_source(sample.number)}: {len(tokens.prompt)} tokens of "
                f"prompt and {longest} of completion exceed `sequence_len: {self.sequence_len}`; set "
                "`excess_length_strategy: drop` or `truncate`, or a larger sequence_len"
            )
        if self.too_long == "drop" or room < 1:
            return TOO_LONG, None
        return TRUNCATED, [each[:room] for each in tokens.completions]

    def _append_sample(
        self,
        out: dict[str, list[Any]],
        status: int,
        sample: Sample,
        tokens: Tokens | None,
        ids: list[list[int]] | None,
    ) -> None:
        example, text = sample.example, sample.text
        if status not in (USED, TRUNCATED):
            row = f"row {self._in_source(sample.number)}"
            self._append(out, status, label=example.label, prompt=row)
            return
        completions = [whole[len(text.prompt) :] for whole in text.wholes]
        if status == TRUNCATED:
            completions = [self.renderer.tokenizer.decode(each) for each in ids]
        values = {"prompt": text.prompt, "prompt_ids": tokens.prompt, "label": example.label}
        values |= {"weight": example.weight, PROMPT: _prompt_number(example)}
        named = zip(SAMPLE_TYPES[self.rl].completions, completions, ids, strict=True)
        for name, completion, completion_ids in named:
            values |= {name: completion, f"{name}_ids": completion_ids}
        self._append(out, status, **values)

    @staticmethod
    def _append(out: dict[str, list[Any]], status: int, **values: Any) -> None:
        for name, column in out.items():
            column.append(status if name == STATUS else values.get(name))


def _prompt_number(example: Example) -> int:
    """The same for all samples with the same prompt and tools, whatever a template makes of them."""
    prompt = example.prompt
    text = prompt if isinstance(prompt, str) else json.dumps([prompt, example.tools], default=str)
    return int.from_bytes(
        blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big", signed=True
    )
