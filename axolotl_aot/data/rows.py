"""What a row of the user's data gives, and the error of a row that cannot be used."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

Message = dict[str, Any]

# The column of a row that `type: ranked` has put together from several rows: their numbers in the data set,
# from 1.
ROW_NUMBERS = "aot_rows"


class BadRow(Exception):
    """Why one row cannot be used; the message names the field.

    row: its number in the data set, from 1, where several rows were put together and only one is bad.
    """

    def __init__(self, reason: str, row: int | None = None):
        super().__init__(reason)
        self.row = row


class Example(NamedTuple):
    """One sample for the trainer.

    prompt: messages, or text that is formatted already. completions: of the same kind, one for
    `rl: aot_unpaired`; chosen and rejected for `rl: aot`. label: whether the completion is a good one;
    None if the sample is left out; of pairs, True if they are used. tools: those that the prompt
    offers. weight: of the sample relative to the others, above 0. row: as in `BadRow`.
    """

    prompt: list[Message] | str
    completions: tuple[list[Message] | str, ...]
    label: bool | None
    tools: list[dict[str, Any]] | None = None
    weight: float = 1.0
    row: int | None = None


def require_field(row: Mapping[str, Any], field: str) -> Any:
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


def is_blank(value: Any) -> bool:
    """Whether a value is text without a character that is not white space."""
    return isinstance(value, str) and (not value or value.isspace())


def not_text(value: Any, field: str) -> BadRow:
    """The error of a value where only text can be meant."""
    if value is None:
        return BadRow(f"field `{field}`: one of its values is null")
    remedy = "" if isinstance(value, (list, Mapping)) else "; if it is meant, write it as text, in quotes"
    return BadRow(f"field `{field}`: expected text, found {value!r:.80}{remedy}")


def formatted_text(value: Any, field: str) -> str:
    """A text that is used as it stands; `BadRow` where it is blank or no text."""
    if not isinstance(value, str):
        raise not_text(value, field)
    if is_blank(value):
        raise BadRow(f"field `{field}` is empty")
    return value
