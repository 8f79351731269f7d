"""Conversations that are written as one text, each turn after `Human:` or `Assistant:`, as in hh-rlhf.

Such a data set (Anthropic's, arXiv 2204.05862) has no column for the prompt: chosen and rejected are the same
transcript but for the last answer.
"""

import re
from typing import Any

from axolotl_aot.data.rendering.prefixes import common_length
from axolotl_aot.data.rows import BadRow, Message

ROLES = {"Human": "user", "Assistant": "assistant"}
TURN = re.compile(r"\n\n(Human|Assistant):")
ANSWER = "\n\nAssistant:"


def is_transcript(value: Any) -> bool:
    """Whether a value is text that begins with a turn of `Human:` and has an answer."""
    return isinstance(value, str) and value.lstrip("\n").startswith("Human:") and ANSWER in value


def messages_of(transcript: str) -> list[Message]:
    """The transcript's turns, without the white space around each."""
    # the first turn may lack its empty lines, where a file was cleaned up
    _, *parts = TURN.split("\n\n" + transcript.lstrip("\n"))
    return [
        {"role": ROLES[role], "content": text.strip()}
        for role, text in zip(parts[::2], parts[1::2], strict=True)
    ]


def split_pair(chosen: str, rejected: str) -> tuple[list[Message], tuple[str, str]]:
    """The turns that two transcripts have in common, and the two answers to them.

    Raises:
        BadRow: they part before their last answer.
    """
    common = chosen[: common_length(chosen, rejected)]
    end = common.rfind(ANSWER)
    first, second = (text[end + len(ANSWER) :] for text in (chosen, rejected))
    if end < 0 or TURN.search(first) or TURN.search(second):
        raise BadRow(
            "the transcripts of chosen and rejected part before their last answer: after "
            f"{common[-60:]!r} they are two conversations, and a pair needs one prompt"
        )
    return messages_of(common[:end]), (first.strip(), second.strip())
