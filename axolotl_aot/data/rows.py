"""What a row of the user's data gives, and how a row says that it cannot be used."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

Message = dict[str, Any]


class BadRow(Exception):
    """Why one row cannot be used; the message names the field."""


class Example(NamedTuple):
    """One sample for the trainer.

    prompt: messages, or text that is formatted already. completions: of the same kind, one for
    `rl: aot_unpaired`; chosen and rejected for `rl: aot`. label: whether the completion is a good one;
    None if the sample is left out, and for pairs that are used, True. tools: those that the prompt
    offers. weight: its mass in its distribution, relative to the others'.
    """

    prompt: list[Message] | str
    completions: tuple[list[Message] | str, ...]
    label: bool | None
    tools: list[dict[str, Any]] | None = None
    weight: float = 1.0


def need(row: Mapping[str, Any], field: str) -> Any:
    """The row's value of a field; `BadRow` where it has none."""
    value = row.get(field)
    if value is None:
        raise BadRow(f"field `{field}` is missing or null")
    return value


def number(value: Any, field: str) -> float:
    """A finite number; `BadRow` for anything else, such as text that looks like one."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise BadRow(f"field `{field}`: {value!r} is not a finite number")
    return float(value)
