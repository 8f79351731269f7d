"""Texts cut at the tags that a chat template may look for in them, and around thoughts."""

import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import NamedTuple

_WORD = r"(?:think|thought|reason)[\w:]*"
# where a thought begins or ends: <think>, </think>, [THINK], <|end_of_thought|>, <|channel>, ...
_THOUGHT_TAG = re.compile(
    rf"</?(?:\w+:)?{_WORD}>|\[/?{_WORD}\]|<\|/?(?:(?:begin|start|end)_(?:of_)?)?{_WORD}\|>"
    r"|<\|channel>|<channel\|>|◁/?think▷",
    re.IGNORECASE,
)
_THOUGHT_END = re.compile(
    rf"</(?:\w+:)?{_WORD}>|\[/{_WORD}\]|<\|(?:/|end_(?:of_)?){_WORD}\|>|<channel\|>|◁/think▷", re.IGNORECASE
)
_TAG = re.compile(r"<[^<>\s'\"]{1,40}>|\[(?=[^\]]*[A-Za-z])[^\[\]\s'\"]{1,40}\]")


class Piece(NamedTuple):
    """From where to where a piece of a text goes, and whether it is a tag that the template names."""

    start: int
    end: int
    is_tag: bool = False


Cut = Callable[[str], list[Piece]]


def uncut(text: str) -> list[Piece]:
    """All of a text in one piece."""
    return [Piece(0, len(text))]


@lru_cache(maxsize=64)
def cut_at_tags(template: str) -> Cut:
    """Cuts texts at the tags that a template names, and around thoughts.

    The tags of thoughts are no piece: a template that moves a thought writes them anew, in its own way.
    Neither is white space around the others.
    """
    named = sorted(set(_TAG.findall(template)), key=len, reverse=True)
    tags = re.compile("|".join([*map(re.escape, named), f"(?i:{_THOUGHT_TAG.pattern})"]))
    return lambda text: list(_pieces(text, tags))


def thought_end(text: str) -> int:
    """Where the last thought within a text ends; 0 where there is none."""
    return max((tag.end() for tag in _THOUGHT_END.finditer(text)), default=0)


def _pieces(text: str, tags: re.Pattern) -> Iterator[Piece]:
    position = 0
    for tag in tags.finditer(text):
        yield from _core(text, position, tag.start())
        if not _THOUGHT_TAG.fullmatch(tag[0]):
            yield Piece(*tag.span(), is_tag=True)
        position = tag.end()
    yield from _core(text, position, len(text))


def _core(text: str, start: int, end: int) -> Iterator[Piece]:
    piece = text[start:end]
    if core := piece.strip():
        begin = start + piece.index(core)
        yield Piece(begin, begin + len(core))
