"""What a type's function makes of the values in a row: found by putting a marker in the place of one of them.

axolotl's functions write whatever a row holds into their text: null becomes the word `None`, an empty answer
becomes a bare end token. When the text is there it is too late to tell.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from axolotl_aot.data.rows import BadRow, is_blank, not_text

MARKER = "\ue000\ue001\ue000"  # of Unicode's private use: no text has it
# What a function raises for a row that it cannot read.
ROW_ERRORS = (KeyError, IndexError, TypeError, AttributeError, ValueError)

Transform = Callable[[dict[str, Any]], dict[str, Any]]


class Place(NamedTuple):
    """A value in a row. path: of column names, keys and positions."""

    path: tuple[str | int, ...]
    value: Any


def require_text(
    row: Mapping[str, Any],
    transform: Transform,
    made: Mapping[str, Any],
    texts: tuple[str, ...],
    may_be_blank: set[str],
) -> None:
    """Every value that the function writes into its texts is text, and not blank.

    made: what the function made of the row. texts: the names of its texts. may_be_blank: columns in which
    blank text is a way to say that there is none.

    Raises:
        BadRow: one is null, blank, or no text.
    """
    others = {name: value for name, value in row.items() if not isinstance(value, str) or is_blank(value)}
    written = [text for name in texts if isinstance(text := made.get(name), str)]
    for place in _places(others):
        value, column = place.value, place.path[0]
        if (isinstance(value, str) and not is_blank(value)) or (is_blank(value) and column in may_be_blank):
            continue
        if not any(str(value) in text for text in written):  # the usual case, and soon told
            continue
        if _is_written(place, row, transform, made, texts):
            raise _reason(place)


def unread_messages(row: Mapping[str, Any], transform: Transform, texts: tuple[str, ...]) -> dict[str, int]:
    """How many messages of a conversation the function passes over, by the column; none where it reads none.

    A message counts as read if its text stands in another place, which is read: the turns before the last
    one are the same in a chosen and a rejected conversation.
    """
    places = [place for place in _places(row) if isinstance(place.value, str) and not is_blank(place.value)]
    read = [place for place in places if _written(_with(row, place.path), transform, texts)]
    read_texts = {place.value for place in read}
    found = {}
    for column in {place.path[0] for place in read if len(place.path) > 2}:
        contents = [p.value for p in places if p.path[0] == column and p.path[-1] in ("content", "value")]
        if passed_over := sum(content not in read_texts for content in contents):
            found[str(column)] = passed_over
    return found


def _places(row: Mapping[str, Any]) -> Iterator[Place]:
    """All values of a row, those within lists and mappings as well."""
    stack = [Place((name,), value) for name, value in row.items()]
    while stack:
        place = stack.pop()
        yield place
        if isinstance(place.value, Mapping):
            stack += [Place((*place.path, key), value) for key, value in place.value.items()]
        elif isinstance(place.value, list):
            stack += [Place((*place.path, i), value) for i, value in enumerate(place.value)]


def _is_written(
    place: Place,
    row: Mapping[str, Any],
    transform: Transform,
    made: Mapping[str, Any],
    texts: tuple[str, ...],
) -> bool:
    """Whether one of the texts is that of the marked row, but for the value in the marker's place."""
    marked = _written(_with(row, place.path), transform, texts)
    return any(text.replace(MARKER, str(place.value)) == made.get(name) for name, text in marked.items())


def _written(row: dict[str, Any], transform: Transform, texts: tuple[str, ...]) -> dict[str, str]:
    """Those of the function's texts that have the marker."""
    try:
        made = transform(row)
    except ROW_ERRORS:  # the function computes with the value, and does not write it
        return {}
    return {name: made[name] for name in texts if isinstance(made.get(name), str) and MARKER in made[name]}


def _with(value: Any, path: tuple[str | int, ...]) -> Any:
    """A copy with the marker at a path; what lies beside the path is shared."""
    if not path:
        return MARKER
    key, *rest = path
    copy: Any = dict(value) if isinstance(value, Mapping) else list(value)
    copy[key] = _with(value[key], tuple(rest))
    return copy


def _reason(place: Place) -> BadRow:
    column, *rest = place.path
    field = f"{column}{''.join(f'[{key}]' if isinstance(key, int) else f'.{key}' for key in rest)}"
    if place.value is None:
        return BadRow(f"field `{field}` is missing or null")
    if is_blank(place.value):
        return BadRow(f"field `{field}` is empty")
    return not_text(place.value, field)
