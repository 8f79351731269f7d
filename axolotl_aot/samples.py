"""What a sample of each `rl:` type is: a pair of completions, or one completion with a label.

The one table that tells the two apart by name; whatever depends on it asks here.
"""

from typing import NamedTuple


class SampleType(NamedTuple):
    """completions: what a sample holds of them, by the names that the prepared data's columns have."""

    completions: tuple[str, ...]

    @property
    def paired(self) -> bool:
        """Whether a sample is a chosen and a rejected answer to one prompt, not one answer with a label."""
        return len(self.completions) == 2

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that hold the completions' tokens."""
        return tuple(f"{name}_ids" for name in self.completions)

    @property
    def unit(self) -> str:
        """What samples are called in messages."""
        return "pairs" if self.paired else "answers"


PAIRS = SampleType(("chosen", "rejected"))
LABELLED = SampleType(("completion",))
SAMPLE_TYPES = {"aot": PAIRS, "aot_unpaired": LABELLED}
