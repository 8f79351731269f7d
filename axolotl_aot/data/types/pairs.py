"""`type: pairs` of `rl: aot_unpaired`: chosen and rejected completions, each an answer of its own.

With `rl: aot` this type is `ChatTemplatePairs`, which takes the same options.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from axolotl_aot.data.messages import TemplateEntry
from axolotl_aot.data.rows import BadRow, Example, require_field
from axolotl_aot.data.transcripts import is_transcript


class Pairs(TemplateEntry):
    """For `rl: aot_unpaired`: every chosen completion is positive, every rejected one negative.

    A column holds one completion (text, message, conversation) or a list of several; an empty list
    holds none.
    """

    field_chosen: str | None = None
    field_rejected: str | None = None

    def examples(self, row: Mapping[str, Any]) -> Iterator[Example]:
        labels = ((True, self.field_chosen), (False, self.field_rejected))
        if self.field_messages is None and all(is_transcript(row.get(field)) for _, field in labels):
            prompt, *answers = self.pair(row, self.field_chosen, self.field_rejected)
            prompt, tools, weight = self.with_system(prompt, row), self.tools(row), self.weight(row)
            for (label, _), completion in zip(labels, answers, strict=True):
                yield Example(prompt, (completion,), label, tools, weight)
            return
        completions = [
            (label, field, value)
            for label, field in labels
            for value in self._several(self.decoded(require_field(row, field), field), field)
        ]
        if not completions:
            raise BadRow(f"fields `{self.field_chosen}` and `{self.field_rejected}` are both empty")
        tools, weight = self.tools(row), self.weight(row)
        for label, field, value in completions:
            leading_messages, completion = self.completion(value, field)
            yield Example(self.prompt(row, leading_messages), (completion,), label, tools, weight)

    def answer_columns(self) -> tuple[str, ...]:
        return (self.field_chosen, self.field_rejected)

    def _several(self, value: Any, field: str) -> list[Any]:
        """The completions in a column: of a list of texts, conversations or assistant's messages, each."""
        if not isinstance(value, list):
            return [value]
        if len(value) > 1 and all(isinstance(item, Mapping) for item in value):
            first, *_ = self.messages(value[:1], field)
            return value if first["role"] == "assistant" else [value]
        return value
