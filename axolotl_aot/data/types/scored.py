"""`type: scored`: a completion with a number."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

from pydantic import PrivateAttr, model_validator

from axolotl_aot.data.entry import Source
from axolotl_aot.data.messages import TemplateEntry
from axolotl_aot.data.rows import BadRow, Example, require_field
from axolotl_aot.data.thresholds import Cut, Thresholds


class Scored(TemplateEntry, Thresholds):
    """For `rl: aot_unpaired`: positive or negative by the score; in between, left out."""

    field_completion: str | None = None
    field_score: str | None = None
    _cut: Cut = PrivateAttr()

    @model_validator(mode="after")
    def _some_threshold(self) -> "Scored":
        if not self.any_set:
            raise ValueError(
                "`type: scored` needs a threshold: positive_above and negative_below, or positive_top and "
                "negative_bottom (shares, such as 0.3)"
            )
        return self

    def prepare(self, source: Source) -> "tuple[Scored, Any]":
        entry, dataset = super().prepare(source)
        scores = []
        if self.by_share and entry.field_score in dataset.column_names:
            scores = list(entry._finite(dataset[entry.field_score]))
        entry._cut = self.cut(scores)
        return entry, dataset

    def examples(self, row: Mapping[str, Any]) -> Iterator[Example]:
        score = self.number(require_field(row, self.field_score), self.field_score)
        leading_messages, completion = self.completion(
            require_field(row, self.field_completion), self.field_completion
        )
        prompt = self.prompt(row, leading_messages)
        yield Example(prompt, (completion,), self._cut.label(score), self.tools(row), self.weight(row))

    def _finite(self, values: Iterable[Any]) -> Iterator[float]:
        """Those of the values that are scores; rows of the others are bad, and have no part in the cut."""
        for value in values:
            with suppress(BadRow):
                yield self.number(value, self.field_score)
