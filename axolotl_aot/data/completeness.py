"""Whether a chat template writes all of a conversation, found by rendering it with marks in its place.

With a mark in place of each part, a rendered conversation is a skeleton, and the same one for all rows of
a shape. Where the row's own parts in place of the marks give the row's own rendered text, but for white
space, all of them stand in it, wherever the template has put them. Where not, as the template looks into
the texts, a row's parts are replaced one at a time: the rendered text must change, and what changes must
hold the part.
"""

import json
import re
from collections.abc import Callable, Iterator
from string import ascii_letters
from typing import Any, NamedTuple

from axolotl_aot.data.parts import REASONING, Part, parts_of, rewritten, with_part
from axolotl_aot.data.pieces import Cut, Piece, cut_at_tags, thought_end, uncut
from axolotl_aot.data.prefixes import common_length
from axolotl_aot.data.rows import BadRow, Message

Tools = list[dict[str, Any]] | None

# A mark's text is in no template. Its quotation mark shows where text is written as in JSON: there, it has a
# backslash before it. A number's mark is a number. When sorted, marks keep the order of their numbers.
TEXT_MARK, NUMBER_MARK = 'aotq{:06d}"z', 73_109_000_000
MARKS = re.compile(r'aotq(\d{6})(\\*)"z|73109(\d{6})')
MAX_SKELETONS = 2_000  # are kept; a table of conversations has few shapes, one with tools may have many
LETTERS = [*ascii_letters, *map(chr, range(0x1400, 0x1700))]  # and rare ones; a text never has them all
SHOWN = 80  # characters of what is left out


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
        is_thought = end is not None and part.name == "content" and part.role == "assistant"
        return not (is_thought and end <= thought_end(part.value))


class Skeleton(NamedTuple):
    """A rendered conversation with marks in place of its parts.

    text: with `%s` for each mark. order: the part of each mark, in the order of the text, and the number
    of backslashes before its quotation mark. in_order: whether these are all parts, as they are in the
    conversation, none of them written as in JSON.
    """

    text: str
    order: list[tuple[int, int]]
    in_order: bool

    def filled(self, texts: list[str]) -> str:
        """The text with the parts in place of the marks."""
        if self.in_order:
            return self.text % tuple(texts)
        return self.text % tuple(ESCAPES.get(level, _json)(texts[number]) for number, level in self.order)


class Completeness:
    """Refuses conversations of which the chat template leaves something out.

    render: messages, tools and add_generation_prompt to text, or `BadRow`.
    """

    def __init__(self, render: Callable[[list[Message], Tools, bool], str]):
        self._render = render
        self._skeletons: dict[Any, Skeleton | None] = {}

    def require(self, rendered: Rendered, template: str) -> None:
        """Refuse a conversation of which something is left out. template: that rendered it, in Jinja.

        Raises:
            BadRow: what is left out, and what can be done.
        """
        if self._is_proven(rendered, uncut):
            return
        cut = cut_at_tags(template)
        if self._is_proven(rendered, cut):
            return
        for number, part in enumerate(parts_of(rendered.messages, rendered.tools)):
            if rendered.requires(part):
                self._require_part(rendered, number, part, cut, template)

    # --- All parts at once -------------------------------------------------------------------

    def _is_proven(self, rendered: Rendered, cut: Cut) -> bool:
        outline = Outline(rendered, cut)
        key = (rendered.add_generation_prompt, rendered.answers, rendered.first, outline.key)
        if key not in self._skeletons:
            if len(self._skeletons) >= MAX_SKELETONS:
                self._skeletons.pop(next(iter(self._skeletons)))
            self._skeletons[key] = self._skeleton(outline, rendered)
        skeleton = self._skeletons[key]
        if skeleton is None:
            return False
        filled = skeleton.filled(outline.texts)
        return filled == rendered.text or _squeezed(filled) == _squeezed(rendered.text)

    def _skeleton(self, outline: "Outline", rendered: Rendered) -> Skeleton | None:
        """The skeleton; None where it lacks a part that is required."""
        messages, tools, required = outline.marked()
        try:
            text = self._render(messages, tools, rendered.add_generation_prompt)
        except BadRow:  # the template looks into the texts
            return None
        found = list(MARKS.finditer(text))
        order = [(int(mark[1] or mark[3]), len(mark[2] or "")) for mark in found]
        # marks beyond the parts are data that look like marks
        numbers = {number for number, _ in order}
        if not required <= numbers <= set(range(len(outline.texts))):
            return None
        marked = rendered._replace(messages=messages, tools=tools, text=text)
        for number, part, piece in outline.unmarked(messages, tools):
            if self._missing(marked, number, part, piece):
                return None
        starts, ends = [0, *(m.end() for m in found)], [*(m.start() for m in found), len(text)]
        between = [text[slice(*span)].replace("%", "%%") for span in zip(starts, ends, strict=True)]
        in_order = order == [(number, 0) for number in range(len(outline.texts))]
        return Skeleton("%s".join(between), order, in_order)

    # --- One part ----------------------------------------------------------------------------

    def _require_part(
        self,
        rendered: Rendered,
        number: int,
        part: Part,
        cut: Cut,
        template: str,
    ) -> None:
        if not self._missing(rendered, number, part):
            return
        pieces = cut(part.value) if isinstance(part.value, str) else [None]
        for piece in pieces:
            if piece and not rendered.requires(part, piece.end):
                continue
            missing = self._missing(rendered, number, part, piece)
            if missing:
                thought = bool(piece) and piece.end <= thought_end(part.value)
                shown = (
                    ""
                    if f"'{missing}'" in part.place or f"`{missing}`" in part.place
                    else f": {_shortened(missing)}"
                )
                advice = _advice(part, thought, template)
                raise BadRow(f"the chat template leaves out {part.place}{shown}; {advice}")

    def _missing(self, rendered: Rendered, number: int, part: Part, piece: Piece | None = None) -> str:
        """What of a part, or of a piece of its text, does not stand in the rendered text; "" for nothing."""
        value = part.value
        text = value[piece.start : piece.end] if piece else value
        forms = {_squeezed(form) for form in _forms(text)}
        mark = _mark_unlike(forms)
        new = value[: piece.start] + mark + value[piece.end :] if piece else mark
        other = with_part(rendered.messages, rendered.tools, number, new)
        real = _squeezed(rendered.text)
        try:
            marked = _squeezed(self._render(*other, rendered.add_generation_prompt))
        except BadRow:  # the template takes no other text here: then the text is counted
            return "" if _is_there_as_often(forms, real, rendered) else str(text)
        start = common_length(real, marked)
        end = common_length(real[start:][::-1], marked[start:][::-1])
        changed = real[start : len(real) - end]
        if any(form in changed for form in forms):
            return ""
        return _left_out(text, changed) if isinstance(text, str) else str(text)


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
        texts = [message["content"] for message in rendered.messages if len(message) == 2]
        if cut is uncut and rendered.tools is None and len(texts) == len(roles) and all(map(_is_text, texts)):
            self.key, self.texts = roles, texts  # the usual row
        else:
            self._conversation = self._marked()
            self.key = json.dumps(self._conversation, default=repr)

    def marked(self) -> tuple[list[Message], Tools, set[int]]:
        """Messages and tools with marks in place of the texts, and which of the marks must be written."""
        if self._conversation is None:
            self._conversation = self._marked()
        return (*self._conversation, self._required)

    def unmarked(self, messages: list[Message], tools: Tools) -> Iterator[tuple[int, Part, Piece | None]]:
        """The parts, and pieces of parts, that must be written and have no mark. Of the marked conversation."""
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


# --- Texts ---------------------------------------------------------------------------------------


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value) and not value.isspace()


def _is_switch(value: Any) -> bool:
    """Whether a mark cannot take a value's place without changing its type."""
    return not isinstance(value, (str, int, float)) or isinstance(value, bool)


def _squeezed(text: str) -> str:
    """A text without its white space."""
    return "".join(text.split())


def _json(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


# How a text is written where its mark's quotation mark has so many backslashes before it.
ESCAPES: dict[int, Callable[[str], str]] = {0: str, 1: _json, 3: lambda text: _json(_json(text))}


def _forms(value: Any) -> Iterator[str]:
    """How a template may write a value: as it is, as in JSON, as in Python."""
    if not isinstance(value, str):
        yield from (str(value), json.dumps(value, default=repr))
        return
    for text in (value, value.strip()):
        yield from (text, _json(text), json.dumps(text)[1:-1], _json(_json(text)), repr(text)[1:-1])


def _mark_unlike(forms: set[str]) -> str:
    """A mark of a letter that is in no form of a text.

    So what the mark has in common with the text is not taken for what stands before or after both, even
    where a template takes a piece of each.
    """
    return 8 * next(letter for letter in LETTERS if not any(letter in form for form in forms))


def _is_there_as_often(forms: set[str], text: str, rendered: Rendered) -> bool:
    """Whether a text stands as often in the rendered text as in the parts that the template must write."""
    parts = parts_of(rendered.messages, rendered.tools)
    values = [_squeezed(str(part.value)) for part in parts if rendered.requires(part)]
    return any(text.count(form) >= max(1, sum(value.count(form) for value in values)) for form in forms)


def _left_out(text: str, changed: str) -> str:
    """From where on a text is left out, if it begins in what has changed; else all of it."""
    words = text.split()
    kept = 0
    while kept < len(words) and "".join(words[: kept + 1]) in changed:
        kept += 1
    if kept == len(words) or len("".join(words[:kept])) < 8:  # such a beginning may be there by chance
        return text.strip()
    match = re.match(r"\s*" + r"\s+".join(map(re.escape, words[:kept])), text)
    return text[match.end() :].strip()


def _shortened(text: str) -> str:
    return repr(text if len(text) <= SHOWN else f"{text[:SHOWN]}…")


# --- What can be done ----------------------------------------------------------------------------


def _advice(part: Part, thought: bool, template: str) -> str:
    if thought:
        return (
            "it does not keep what is thought within the text; choose another chat_template that does, see "
            "whether this one has a switch for `chat_template_kwargs`, or take the thoughts out of the data"
        )
    if part.name in REASONING:
        known = [name for name in REASONING if re.search(rf"\b{name}\b", template) and name != part.name]
        if known:
            return (
                f"it reads `{known[0]}`: set `message_property_mappings: {{{known[0]}: {part.name}}}`, or "
                "choose another chat_template"
            )
        return "choose another chat_template, or map it with message_property_mappings"
    if part.role == "system":
        return "choose another chat_template, or set `drop_system_message: true`"
    return "choose another chat_template"
