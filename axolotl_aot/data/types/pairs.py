"""`type: pairs`: chosen and rejected completions, as answers that need no partner."""

from collections.abc import Iterator, Mapping
from typing import Any

from axolotl_aot.data.messages import TemplateEntry
from axolotl_aot.data.rows import BadRow, Example, need


class Pairs(TemplateEntry):
    """For `rl: aot_unpaired`: every chosen completion is positive, every rejected one negative.

    A column holds one completion (text, message, conversation) or a list of several; an empty list
    holds none.
    """

    field_chosen: str | None = None
    field_rejected: str | None = None

    def examples(self, row: Mapping[str, Any]) -> Iterator[Example]:
        sides = [
            (field, self._several(self.decoded(need(row, field)), field))
            for field in (self.field_chosen, self.field_rejected)
        ]
        if not any(values for _, values in sides):
            raise BadRow(f"fields `{self.field_chosen}` and `{self.field_rejected}` are both empty")
        tools, weight = self.tools(row), self.weight(row)
        for label, (field, values) in zip((True, False), sides, strict=True):
            for value in values:
                own, completion = self.completion(value, field)
                yield Example(self.prompt(row, own), (completion,), label, tools, weight)

    def _several(self, value: Any, field: str) -> list[Any]:
        """The completions in a column: a list of texts, of conversations, or of answers to one prompt."""
        if not isinstance(value, list):
            return [value]
        if len(value) > 1 and all(isinstance(item, Mapping) for item in value):
            first, *_ = self.messages(value[:1], field)
            return value if first["role"] == "assistant" else [value]
        return value
