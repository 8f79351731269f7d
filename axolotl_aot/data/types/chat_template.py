"""`type: chat_template`: a conversation and its completion, or its chosen and rejected completion."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from axolotl_aot.data.entry import LabelledEntry
from axolotl_aot.data.messages import TemplateEntry
from axolotl_aot.data.rows import BadRow, Example, Message, require_field
from axolotl_aot.errors import AOTDataError


class ChatTemplate(TemplateEntry, LabelledEntry):
    """For `rl: aot_unpaired`: a conversation, a completion and a label.

    Where the data set has no column for the completion, it is the conversation's last message.
    """

    optional: ClassVar = {*TemplateEntry.optional, "field_completion", "field_label"}

    field_completion: str | None = None

    def resolve_columns(self, columns: list[str]) -> "ChatTemplate":
        entry = super().resolve_columns(columns)
        if self.label is None and entry.field_label is None:
            raise AOTDataError(
                "no column is called label; set `field_label`, or `label: true` or `false` for all rows. "
                f"Columns: {', '.join(columns)}."
            )
        return entry

    def examples(self, row: Mapping[str, Any]) -> Iterator[Example]:
        prompt, completion = self._split(row)
        yield Example(
            prompt,
            (completion,),
            self.label_of(row),
            self.tools(row),
            self.weight(row),
        )

    def _split(self, row: Mapping[str, Any]) -> tuple[list[Message], list[Message]]:
        if self.field_completion is None:
            leading_messages, completion = self.completion(
                require_field(row, self.field_messages or "messages"), self.field_messages
            )
            if not leading_messages:
                raise BadRow(
                    f"field `{self.field_messages}`: a conversation must have messages before its last one, "
                    "or set field_completion"
                )
        else:
            leading_messages, completion = self.completion(
                require_field(row, self.field_completion), self.field_completion
            )
        return self.prompt(row, leading_messages), completion


class ChatTemplatePairs(TemplateEntry):
    """For `rl: aot`: a conversation, a chosen and a rejected completion. It is `type: pairs` there, too."""

    field_chosen: str | None = None
    field_rejected: str | None = None

    def examples(self, row: Mapping[str, Any]) -> Iterator[Example]:
        leading_messages, chosen, rejected = self.pair(row, self.field_chosen, self.field_rejected)
        prompt = self.prompt(row, leading_messages)
        yield Example(prompt, (chosen, rejected), True, self.tools(row), self.weight(row))

    def answer_columns(self) -> tuple[str, ...]:
        return (self.field_chosen, self.field_rejected)
