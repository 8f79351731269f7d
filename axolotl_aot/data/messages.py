"""Conversations: from a row's columns to messages that a chat template takes."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, PrivateAttr

from axolotl_aot.data.entry import Entry, Source
from axolotl_aot.data.message_columns import message_columns, warn_of_json_text
from axolotl_aot.data.rows import BadRow, Message, is_blank, not_text, require_field
from axolotl_aot.data.transcripts import is_transcript, messages_of, split_pair
from axolotl_aot.errors import AOTDataError

if TYPE_CHECKING:
    from datasets import Dataset

ROLES = {
    "user": ["user", "human"],
    "assistant": ["assistant", "gpt"],
    "system": ["system"],
    "tool": ["tool"],
}
# The names under which a message's properties are looked for, where `message_property_mappings` gives none.
USUAL_PROPERTIES = {"role": ("role", "from"), "content": ("content", "value")}
# Properties of a message that templates write as they stand, and that can only be text.
TEXT_PROPERTIES = ("reasoning_content", "reasoning", "thinking", "name")
# Options whose columns may hold conversations.
CONVERSATION_FIELDS = ("field_messages", "field_completion", "field_chosen", "field_rejected")


class TemplateEntry(Entry):
    """A type whose rows are rendered by a chat template."""

    optional: ClassVar = {"field_messages", "field_system", "field_tools"}
    # whether the rows may also be text already, which only their columns show
    may_be_text: ClassVar[bool] = False

    chat_template: str | None = None
    chat_template_jinja: str | None = None
    field_messages: str | None = None
    field_system: str | None = None
    field_tools: str | None = None
    message_property_mappings: dict[str, str] = Field(default_factory=dict)
    roles: dict[str, list[str]] = Field(default_factory=dict)
    drop_system_message: bool = False
    # columns of a source that knows nothing but text, in which conversations are written as JSON
    _message_columns: set[str] = PrivateAttr(default_factory=set)

    def prepare(self, source: Source) -> "tuple[TemplateEntry, Dataset]":
        entry, dataset = super().prepare(source)
        fields = (entry.model_dump().get(field) for field in CONVERSATION_FIELDS)
        columns = [column for column in fields if column in dataset.column_names]
        if source.text_only:
            entry._message_columns = message_columns(dataset, columns, self._role_names(), source.where)
        else:
            warn_of_json_text(dataset, columns, self._role_names(), source.where)
        return entry, dataset

    def needs_template(self) -> bool:
        """Whether rows are messages; asked of an entry that knows its columns."""
        return True

    # --- Prompts -----------------------------------------------------------------------------

    def conversation(self, row: Mapping[str, Any]) -> list[Message]:
        """The row's messages: of a list, of one message, or of a text, which is the user's."""
        field = self.field_messages or "messages"
        value = self.decoded(require_field(row, field), field)
        if isinstance(value, str):
            if is_blank(value):
                raise BadRow(f"field `{field}`: the prompt is empty")
            return [{"role": "user", "content": value}]
        return self.messages(value, field)

    def prompt(self, row: Mapping[str, Any], leading_messages: list[Message] | None) -> list[Message]:
        """What a completion answers, its system message included.

        leading_messages: those before the last one where the completion is a whole conversation, as
            `completion` returns them; they are the prompt. Where None, the row's own messages are.
        """
        if leading_messages is not None:
            self._require_no_other_prompt(row, leading_messages)
            return self.with_system(leading_messages, row)
        messages = self.conversation(row)
        if not messages:
            raise BadRow(f"field `{self.field_messages}`: the prompt is empty")
        if messages[-1]["role"] == "assistant":
            raise BadRow(
                f"field `{self.field_messages}`: the conversation ends with the assistant's turn, and the "
                "completion in another column would be one more; remove that turn (or, with `type: "
                f"chat_template`, set `field_completion: {self.field_messages}` to take it)"
            )
        return self.with_system(messages, row)

    def resolve_columns(self, columns: list[str]) -> "Entry":
        if self.field_messages is None and {"instruction", "input"} <= set(columns):
            raise AOTDataError(
                "both `instruction` and `input` could be the prompt, and neither is all of it; set "
                "`field_messages` to one of them, or use a `type:` that joins them"
            )
        return super().resolve_columns(columns)

    def with_system(self, messages: list[Message], row: Mapping[str, Any]) -> list[Message]:
        """The messages with the row's system message, or without any (`drop_system_message`)."""
        own = messages[0]["content"] if messages and messages[0]["role"] == "system" else None
        if self.drop_system_message:
            return messages if own is None else messages[1:]
        system = self._system(row)
        if system is None or system == own:
            return messages
        if own is not None and not is_blank(own):
            raise BadRow(
                f"field `{self.field_system}`: the conversation has a system message of its own, {own!r:.60}"
                f", and this column another, {system!r:.60}; remove one of them (or all, with "
                "`drop_system_message: true`)"
            )
        return [{"role": "system", "content": system}, *messages[0 if own is None else 1 :]]

    def _system(self, row: Mapping[str, Any]) -> str | None:
        """The system column of the row: a text, a message, or a list with one; None if it is empty."""
        value = row.get(self.field_system) if self.field_system else None
        if value is None or is_blank(value) or value in ([], {}):
            return None
        if isinstance(value, str):
            return value
        if not isinstance(value, (list, Mapping)):
            raise not_text(value, self.field_system)
        parts = value if isinstance(value, list) else [value]
        if self._role_names().isdisjoint(key for part in parts if isinstance(part, Mapping) for key in part):
            value = [{"role": "system", "content": value if isinstance(value, list) else parts}]
        messages = self.messages(value, self.field_system)
        if len(messages) != 1 or messages[0]["role"] != "system":
            roles = ", ".join(message["role"] for message in messages)
            raise BadRow(f"field `{self.field_system}`: expected one system message, found {roles}")
        return None if is_blank(messages[0]["content"]) else messages[0]["content"]

    def tools(self, row: Mapping[str, Any]) -> list[dict[str, Any]] | None:
        """The tools that the row's prompt offers, in JSON Schema; None where there are none."""
        tools = row.get(self.field_tools) if self.field_tools else None
        tools = _parsed(tools, self.field_tools) if isinstance(tools, str) and tools.strip() else tools
        if not tools:
            return None
        if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
            raise BadRow(f"field `{self.field_tools}`: tools must be a list of JSON schemas, one per tool")
        tools = without_nulls(tools)
        for tool in tools:
            function = tool.get("function", tool)
            if not isinstance(function, Mapping):
                raise BadRow(f"field `{self.field_tools}`: expected a JSON schema, found {function!r:.80}")
            if isinstance(function.get("parameters"), str):
                function["parameters"] = _parsed(function["parameters"], self.field_tools)
        return tools

    # --- Completions -------------------------------------------------------------------------

    def completion(self, value: Any, field: str) -> tuple[list[Message] | None, list[Message]]:
        """A completion: a text, a message, a list of the assistant's messages, or a conversation.

        Returns the messages before the last one, for a conversation; None for other values. And the
        completion's own messages.
        """
        value = self.decoded(value, field)
        if isinstance(value, str):
            if self.field_messages in (None, field) and is_transcript(value):
                messages = messages_of(value)
                return messages[:-1], self._checked(messages[-1:], field)
            return None, self._checked([{"role": "assistant", "content": value}], field)
        messages = self.messages(value, field)
        if any(message["role"] != "assistant" for message in messages):
            return messages[:-1], self._checked(messages[-1:], field)
        return None, self._checked(messages, field)

    def pair(
        self, row: Mapping[str, Any], chosen: str, rejected: str
    ) -> tuple[list[Message] | None, list[Message], list[Message]]:
        """The completions in two columns, chosen and rejected, after the messages before them.

        These are None where the completions are no conversations.
        """
        values = [require_field(row, field) for field in (chosen, rejected)]
        if self.field_messages is None and all(map(is_transcript, values)):
            leading_messages, values = split_pair(*values)
            _, first = self.completion(values[0], chosen)
            _, second = self.completion(values[1], rejected)
            return leading_messages, first, second
        (leading_messages, first), (other, second) = map(self.completion, values, (chosen, rejected))
        if leading_messages != other:
            raise BadRow(
                f"fields `{chosen}` and `{rejected}`: the two conversations differ before their last message"
            )
        return leading_messages, first, second

    def _require_no_other_prompt(self, row: Mapping[str, Any], leading_messages: list[Message]) -> None:
        """Whether a completion that begins with the assistant is a conversation, or goes on with the prompt.

        A greeting may come before the user's first message; but the assistant's turns and the tools' may
        as well follow the prompt of another column, which must not be lost.
        """
        if not leading_messages or leading_messages[0]["role"] != "assistant":
            return
        if not self.field_messages or row.get(self.field_messages) is None:
            return
        own = self.conversation(row)
        if not own or own[-1] in leading_messages or own[:-1] == leading_messages:
            return
        role = next((m["role"] for m in leading_messages if m["role"] != "assistant"), "user")
        raise BadRow(
            f"a completion holds the assistant's messages only, not one of `{role}`; what comes before its "
            f"last answer belongs to the prompt, `{self.field_messages}`"
        )

    def _checked(self, completion: list[Message], field: str) -> list[Message]:
        if not completion:
            raise BadRow(f"field `{field}`: the completion is empty")
        for message in completion:
            if message["role"] != "assistant":
                raise BadRow(
                    f"field `{field}`: a completion holds the assistant's messages only, not one of "
                    f"`{message['role']}`; what comes before its answer belongs to the prompt"
                )
            if not message.get("tool_calls") and is_blank(message["content"] or ""):
                raise BadRow(f"field `{field}`: the completion is empty")
        return completion

    # --- Messages ----------------------------------------------------------------------------

    def decoded(self, value: Any, field: str) -> Any:
        """A conversation that is written as JSON, where the whole column is; other values as they are."""
        if field in self._message_columns and isinstance(value, str) and not is_blank(value):
            return json.loads(value)
        return value

    def _role_names(self) -> set[str]:
        """The properties by which a mapping is known as a message."""
        given = self.message_property_mappings.get("role")
        return {given} if given else set(USUAL_PROPERTIES["role"])

    def messages(self, value: Any, field: str) -> list[Message]:
        """Messages with the names and roles that templates know, from one message or several."""
        value = [value] if isinstance(value, Mapping) else value
        if not isinstance(value, list):
            raise not_text(value, field)
        return [self._message(message, field, i + 1) for i, message in enumerate(value)]

    def _message(self, raw: Any, field: str, position: int) -> Message:
        where = f"field `{field}`, message {position}"
        if not isinstance(raw, Mapping):
            raise BadRow(f"{where}: expected `role` and `content`, found {raw!r:.80}")
        rest = without_nulls(raw)
        message = {}
        for name in {**USUAL_PROPERTIES, **self.message_property_mappings}:
            given = self.message_property_mappings.get(name)
            for source in (given,) if given else USUAL_PROPERTIES[name]:
                if source in rest:
                    message[name] = rest.pop(source)
                    break
        message.update(rest)
        if "role" not in message:
            raise BadRow(
                f"{where}: no role among its properties {', '.join(raw)}; set message_property_mappings"
            )
        message["role"] = self._role(message["role"], where)
        message["content"] = self._content(message, where)
        for name in TEXT_PROPERTIES:
            if not isinstance(message.get(name, ""), str):
                raise BadRow(f"{where}: its {name} must be text, found {message[name]!r:.80}")
        if message.get("tool_calls"):
            message["tool_calls"] = self._tool_calls(message["tool_calls"], where)
        return message

    def _tool_calls(self, calls: Any, where: str) -> list[dict[str, Any]]:
        """Tool calls as templates know them: a list, with the arguments as mappings."""
        calls = _parsed(calls, "tool_calls") if isinstance(calls, str) else calls
        calls = [calls] if isinstance(calls, Mapping) else calls
        for call in calls if isinstance(calls, list) else [None]:
            function = call.get("function", call) if isinstance(call, Mapping) else None
            if not isinstance(function, Mapping):
                raise BadRow(f"{where}: tool_calls must be a list of calls, each with a `function`")
            if isinstance(function.get("arguments"), str):
                text = function["arguments"]
                function["arguments"] = _parsed(text, "tool_calls.arguments") if text.strip() else {}
        return calls

    def _role(self, role: Any, where: str) -> str:
        for roles in (self.roles, ROLES):
            for target, sources in roles.items():
                if role in sources:
                    return target
        known = ", ".join(
            sorted({s for roles in (self.roles, ROLES) for each in roles.values() for s in each})
        )
        raise BadRow(f"{where}: the role {role!r} is none of {known}; set `roles: {{user: [{role}]}}`, say")

    def _content(self, message: Message, where: str) -> str | None:
        content = message.get("content")
        if isinstance(content, list):
            if not all(isinstance(part, Mapping) and isinstance(part.get("text"), str) for part in content):
                raise BadRow(f"{where}: its content has parts that are not text")
            content = "".join(part["text"] for part in content)
        if is_blank(content) and message["role"] in ("user", "assistant") and not message.get("tool_calls"):
            raise BadRow(f"{where}: its content is empty")
        if content is None and not message.get("tool_calls"):
            raise BadRow(f"{where}: its content is missing or null, and it calls no tool")
        if content is not None and not isinstance(content, str):
            raise BadRow(f"{where}: its content must be text, found {content!r:.80}")
        return content


def without_nulls(value: Any) -> Any:
    """A copy without the keys that are null: in an Arrow table a mapping has the keys of all rows."""
    if isinstance(value, Mapping):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value


def _parsed(text: str, field: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise BadRow(f"field `{field}`: not valid JSON ({error}): {text!r:.80}") from None
