"""Conversations with marks in place of their parts: the same for all rows of a shape."""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from axolotl_aot.data.rendering.parts import REASONING, Part, parts_of, rewritten
from axolotl_aot.data.rendering.pieces import Cut, Piece, thought_end, uncut
from axolotl_aot.data.rows import Message

Tools = list[dict[str, Any]] | None

# A mark's text is in no template. Its quotation mark shows where text is written as in JSON: there, it has a
# backslash before it. A number's mark is a number. When sorted, marks keep the order of their numbers.
TEXT_MARK, NUMBER_MARK = 'aotq{:06d}"z', 73_109_000_000
MARKS = re.compile(r'aotq(\d{6})(\\*)"z|73109(\d{6})')


class Rendered(NamedTuple):
    """A conversation, and what the chat template has made of it.

    add_generation_prompt: as it was rendered. answers: the position of the first message of the completion;
    first: of the first one that is to be looked for, 0 for the tools as well.
    """

    messages: list[Message]
    tools: Tools
    text: str
    add_generation_prompt: bool
    answers: int
    first: int

    def requires(self, part: Part, end: int | None = None) -> bool:
        """Whether the template must write a part, or the piece of its text that ends at `end`.

        It may leave out what the assistant thought in earlier turns, as many do on purpose.
        """
        if part.message is None:
            return self.first == 0
        if part.message < self.first:
            return False
        if part.message >= self.answers:
            return True
        if part.name in REASONING:
            return False
        if end is None or part.name != "content" or part.role != "assistant":
            return True
        return end > thought_end(part.value)


class Outline:
    """A conversation's shape, and the texts that fill it.

    cut: where each text is cut into pieces; tags, and what is between the pieces, belong to the shape, and so
    do truth values. key: the same for conversations of the same shape.
    """

    def __init__(self, rendered: Rendered, cut: Cut):
        self.texts: list[str] = []
        self._rendered, self._cut = rendered, cut
        self._required: set[int] = set()
        self._conversation = None
        roles = tuple(message["role"] for message in rendered.messages)
        self.key: tuple[str, ...] | str = roles
        texts = [message["content"] for message in rendered.messages if len(message) == 2]
        if cut is uncut and rendered.tools is None and len(texts) == len(roles) and all(map(_is_text, texts)):
            self.texts = texts  # the usual row
        else:
            self._conversation = self._marked()
            self.key = json.dumps(self._conversation, default=repr)

    def marked(self) -> tuple[list[Message], Tools, set[int]]:
        """Messages and tools with marks in place of the texts, and which of the marks must be written."""
        if self._conversation is None:
            self._conversation = self._marked()
        return (*self._conversation, self._required)

    def unmarked(self, messages: list[Message], tools: Tools) -> Iterator[tuple[int, Part, Piece | None]]:
        """Of the marked conversation, the parts and pieces that must be written and have no mark."""
        for number, part in enumerate(parts_of(messages, tools)):
            if _is_switch(part.value):
                if self._rendered.requires(part):
                    yield number, part, None
            elif isinstance(part.value, str):
                for piece in self._cut(part.value):
                    if piece.is_tag and self._rendered.requires(part, piece.end):
                        yield number, part, piece

    def _marked(self) -> tuple[list[Message], Tools]:
        self.texts = []
        return rewritten(self._rendered.messages, self._rendered.tools, self._mark)

    def _mark(self, part: Part) -> Any:
        if _is_switch(part.value):
            return part.value
        if not isinstance(part.value, str):
            return NUMBER_MARK + self._number(str(part.value), self._rendered.requires(part))
        new, position = [], 0
        for start, end, is_tag in self._cut(part.value):
            if is_tag:
                continue
            number = self._number(part.value[start:end], self._rendered.requires(part, end))
            new += [part.value[position:start], TEXT_MARK.format(number)]
            position = end
        return "".join([*new, part.value[position:]])

    def _number(self, text: str, required: bool) -> int:
        number = len(self.texts)
        self.texts.append(text)
        if required:
            self._required.add(number)
        return number


class Skeleton(NamedTuple):
    """A rendered conversation with marks in place of its parts.

    text: with `%s` for each mark. order: the part of each mark, in the order of the text, and the number
    of backslashes before its quotation mark. in_order: whether they count from 0 upwards, none of them
    written as in JSON.
    """

    text: str
    order: list[tuple[int, int]]
    in_order: bool

    def filled(self, texts: list[str]) -> str:
        """The text with the parts in place of the marks."""
        if self.in_order:
            return self.text % tuple(texts)
        return self.text % tuple(ESCAPES.get(level, as_json)(texts[number]) for number, level in self.order)

    @classmethod
    def of(cls, text: str) -> "Skeleton":
        """The skeleton of a rendered text with marks."""
        found = list(MARKS.finditer(text))
        order = [(int(mark[1] or mark[3]), len(mark[2] or "")) for mark in found]
        starts, ends = [0, *(mark.end() for mark in found)], [*(mark.start() for mark in found), len(text)]
        between = [text[slice(*span)].replace("%", "%%") for span in zip(starts, ends, strict=True)]
        return cls("%s".join(between), order, order == [(number, 0) for number in range(len(order))])


def as_json(text: str) -> str:
    """A text as it stands between quotation marks in JSON."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


# How a text is written where its mark's quotation mark has so many backslashes before it.
ESCAPES: dict[int, Callable[[str], str]] = {0: str, 1: as_json, 3: lambda text: as_json(as_json(text))}


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value) and not value.isspace()


def _is_switch(value: Any) -> bool:
    """Whether a mark cannot take a value's place without changing its type."""
    return not isinstance(value, (str, int, float)) or isinstance(value, bool)
