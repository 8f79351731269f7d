"""`type: chat_template`: a conversation and its completion, or its chosen and rejected completion.

May import `axolotl_aot.data.entry`, `messages` and `rows`.
"""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from axolotl_aot.data.entry import LabelledEntry
from axolotl_aot.data.messages import TemplateEntry
from axolotl_aot.data.rows import BadRow, Example, Message, need


class ChatTemplate(TemplateEntry, LabelledEntry):
    """For `rl: aot_unpaired`: a conversation, a completion and a label.

    Where the data set has no column for the completion, it is the conversation's last message.
    """

    optional: ClassVar = {*TemplateEntry.optional, "field_completion", "field_label"}

    field_completion: str | None = None

    def examples(self, row: Mapping[str, Any]) -> Iterator[Example]:
        prompt, completion = self._split(row)
        yield Example(
            self.with_system(prompt, row),
            (completion,),
            self.label_of(row),
            self.tools(row),
            self.weight(row),
        )

    def _split(self, row: Mapping[str, Any]) -> tuple[list[Message], list[Message]]:
        if self.field_completion is None:
            prompt, completion = self.completion(need(row, self.field_messages), self.field_messages)
            if not prompt:
                raise BadRow(
                    f"field `{self.field_messages}`: a conversation must have messages before its last one, "
                    "or set field_completion"
                )
            return prompt, completion
        whole, completion = self.completion(need(row, self.field_completion), self.field_completion)
        if whole is not None:
            return whole, completion
        prompt = self.conversation(row)
        if prompt[-1]["role"] == "assistant":
            raise BadRow(
                f"field `{self.field_messages}`: the conversation ends with the assistant's turn, and the "
                f"completion in `{self.field_completion}` would be another; remove one"
            )
        return prompt, completion


class ChatTemplatePairs(TemplateEntry):
    """For `rl: aot`: a conversation, a chosen and a rejected completion."""

    field_chosen: str | None = None
    field_rejected: str | None = None

    def examples(self, row: Mapping[str, Any]) -> Iterator[Example]:
        chosen_prompt, chosen = self.completion(need(row, self.field_chosen), self.field_chosen)
        rejected_prompt, rejected = self.completion(need(row, self.field_rejected), self.field_rejected)
        if chosen_prompt != rejected_prompt:
            raise BadRow(
                f"fields `{self.field_chosen}` and `{self.field_rejected}`: the two conversations differ "
                "before their last message"
            )
        prompt = self.conversation(row) if chosen_prompt is None else chosen_prompt
        yield Example(
            self.with_system(prompt, row), (chosen, rejected), True, self.tools(row), self.weight(row)
        )
