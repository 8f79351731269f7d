"""The parts of a conversation that a chat template has to write: its texts, tools and tool calls."""

from collections.abc import Callable
from itertools import count
from typing import Any, NamedTuple

from axolotl_aot.data.rows import Message

# The properties of a message that hold what the assistant thought.
REASONING = ("reasoning_content", "reasoning", "thinking")


class Part(NamedTuple):
    """A text, number or truth value of a conversation.

    place: what it is, for messages. message: the position of its message; None for a part of the tools.
    role: of that message. name: the property of the message, or what it is of a tool.
    """

    value: Any
    place: str
    message: int | None
    role: str | None
    name: str


def rewritten(
    messages: list[Message], tools: list[dict[str, Any]] | None, write: Callable[[Part], Any]
) -> tuple[list[Message], list[dict[str, Any]] | None]:
    """A conversation and its tools with each part replaced by what `write` makes of it.

    Empty text is no part, and neither are ids and what a tool's schema says besides names and description.
    """
    return (
        [_message(message, i, len(messages), write) for i, message in enumerate(messages)],
        tools and [_tool(tool, write) for tool in tools],
    )


def parts_of(messages: list[Message], tools: list[dict[str, Any]] | None) -> list[Part]:
    """All parts, in the order in which `rewritten` hands them out."""
    found: list[Part] = []

    def note(part: Part) -> Any:
        found.append(part)
        return part.value

    rewritten(messages, tools, note)
    return found


def with_part(
    messages: list[Message], tools: list[dict[str, Any]] | None, number: int, value: Any
) -> tuple[list[Message], list[dict[str, Any]] | None]:
    """The conversation and its tools with another value for one part, given by its place in `parts_of`."""
    numbers = count()
    return rewritten(messages, tools, lambda part: value if next(numbers) == number else part.value)


def _message(message: Message, position: int, total: int, write: Callable[[Part], Any]) -> Message:
    role = message["role"]
    where = f"of a message of `{role}` (message {position + 1} of {total})"
    new = dict(message)
    thoughts: dict[str, Any] = {}
    for name in ("content", *REASONING):
        value = message.get(name)
        if not isinstance(value, str) or not value.strip():
            continue
        # some data hold a thought twice, under two names: a template that writes it once leaves nothing out
        if name in REASONING and value in thoughts:
            new[name] = thoughts[value]
            continue
        new[name] = write(Part(value, f"the `{name}` {where}", position, role, name))
        if name in REASONING:
            thoughts[value] = new[name]
    if message.get("tool_calls"):
        new["tool_calls"] = [_call(call, where, position, role, write) for call in message["tool_calls"]]
    return new


def _call(
    call: dict[str, Any], where: str, position: int, role: str, write: Callable[[Part], Any]
) -> dict[str, Any]:
    function = call.get("function", call)
    of = f"the `tool_calls` {where}"

    def part(value: Any, place: str) -> Any:
        return write(Part(value, place, position, role, "tool_calls"))

    new = dict(function)
    name = function.get("name")
    if isinstance(name, str) and name:
        new["name"] = part(name, f"{of}, the tool {name!r}")
    if function.get("arguments") is not None:
        new["arguments"] = _argument(
            function["arguments"],
            "",
            lambda value, path: part(value, f"{of}, the argument {path} of {name!r}"),
        )
    return {**call, "function": new} if "function" in call else new


def _argument(value: Any, path: str, part: Callable[[Any, str], Any]) -> Any:
    """An argument's value; of a mapping or a list, each name and value in it. path: of names, with dots."""
    if isinstance(value, dict):
        paths = {name: f"{path}.{name}" if path else str(name) for name in value}
        # a template may sort the names: what is written in their stead is asked for in the same order
        names = {name: part(name, f"`{paths[name]}`") for name in sorted(value, key=_sorted_by)}
        return {names[name]: _argument(item, paths[name], part) for name, item in value.items()}
    if isinstance(value, list):
        return [_argument(item, path, part) for item in value]
    if value is None or (isinstance(value, str) and not value.strip()):
        return value
    return part(value, f"`{path}`")


def _tool(tool: dict[str, Any], write: Callable[[Part], Any]) -> dict[str, Any]:
    function = tool.get("function", tool)
    name = function.get("name")
    of = f"the tool {name!r}"

    def part(value: Any, place: str, kind: str) -> Any:
        return write(Part(value, place, None, None, kind))

    new = dict(function)
    if isinstance(name, str) and name:
        new["name"] = part(name, of, "tool")
    if isinstance(function.get("description"), str) and function["description"].strip():
        new["description"] = part(function["description"], f"the description of {of}", "description")
    parameters = function.get("parameters")
    properties = parameters.get("properties") if isinstance(parameters, dict) else None
    if isinstance(properties, dict):
        names = {
            key: part(key, f"the parameter {key!r} of {of}", "parameter")
            for key in sorted(properties, key=_sorted_by)
        }
        new["parameters"] = {
            **parameters,
            "properties": {names[key]: schema for key, schema in properties.items()},
        }
        if isinstance(parameters.get("required"), list):
            new["parameters"]["required"] = [
                names.get(key, key) if isinstance(key, str) else key for key in parameters["required"]
            ]
    return {**tool, "function": new} if "function" in tool else new


def _sorted_by(name: Any) -> str:
    """As Jinja's `dictsort` has it."""
    return str(name).lower()
