"""Whether a chat template writes all of a conversation, found by rendering it with marks in its place.

With a mark in place of each part, a rendered conversation is a skeleton, and the same one for all rows of
a shape. Where the row's own parts in place of the marks give the row's own rendered text, but for white
space, all of them stand in it, wherever the template has put them. Where not, as the template looks into
the texts, a row's parts are replaced one at a time: the rendered text must change, and what changes must
hold the part.
"""

import json
import re
from bisect import bisect_left
from collections.abc import Callable, Iterator
from itertools import accumulate
from string import ascii_letters
from typing import Any

from axolotl_aot.data.rendering.parts import REASONING, Part, parts_of, with_part
from axolotl_aot.data.rendering.pieces import Cut, Piece, cut_at_tags, thought_end, uncut
from axolotl_aot.data.rendering.prefixes import common_length
from axolotl_aot.data.rendering.skeletons import Outline, Rendered, Skeleton, Tools, as_json
from axolotl_aot.data.rows import BadRow, Message

MAX_SKELETONS = 2_000  # are kept; a table of conversations has few shapes, one with tools may have many
LETTERS = [*ascii_letters, *map(chr, range(0x1400, 0x1700))]  # and rare ones; a text never has them all
SHOWN = 80  # characters of what is left out


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

    def _skeleton(self, outline: Outline, rendered: Rendered) -> Skeleton | None:
        """The skeleton; None where it lacks a part that is required."""
        messages, tools, required = outline.marked()
        try:
            text = self._render(messages, tools, rendered.add_generation_prompt)
        except BadRow:  # the template looks into the texts
            return None
        skeleton = Skeleton.of(text)
        numbers = {number for number, _ in skeleton.order}
        # marks beyond the texts are data that look like marks
        if not required <= numbers <= set(range(len(outline.texts))):
            return None
        marked = rendered._replace(messages=messages, tools=tools, text=text)
        missing = (self._missing(marked, *unmarked) for unmarked in outline.unmarked(messages, tools))
        return None if any(missing) else skeleton

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
                thought = piece is not None and piece.end <= thought_end(part.value)
                is_named = any(f"{quote}{missing}{quote}" in part.place for quote in "'`")
                shown = "" if is_named else f": {_shortened(missing)}"
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


# --- Texts ---------------------------------------------------------------------------------------


def _squeezed(text: str) -> str:
    """A text without its white space."""
    return "".join(text.split())


def _forms(value: Any) -> Iterator[str]:
    """How a template may write a value: as it is, as in JSON, as in Python."""
    if not isinstance(value, str):
        yield from (str(value), json.dumps(value, default=repr))
        return
    for text in (value, value.strip()):
        yield from (text, as_json(text), json.dumps(text)[1:-1], as_json(as_json(text)), repr(text)[1:-1])


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
    words, squeezed = text.split(), _squeezed(text)
    ends = [0, *accumulate(map(len, words))]
    kept = bisect_left(ends, True, lo=1, key=lambda end: squeezed[:end] not in changed) - 1
    if kept == len(words) or ends[kept] < 8:  # such a beginning may be there by chance
        return text.strip()
    match = re.match(r"\s*" + r"\s+".join(map(re.escape, words[:kept])), text)
    assert match is not None  # they are the text's own first words
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
