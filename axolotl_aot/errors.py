"""The errors that a user's YAML or data can cause, and the hint at what was meant.

Imports nothing of the package.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class AOTConfigError(ValueError):
    """A YAML that AOT cannot run as it stands; the message names key, value and remedy."""


class AOTDataError(ValueError):
    """Data that cannot be used as it stands; the message names the entry, the row and the remedy."""


def closest(word: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown word: the known one that comes closest, or all of them."""
    close = get_close_matches(word, known := list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else f" Known: {', '.join(known)}."
