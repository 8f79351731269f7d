"""What became of the rows of each entry, for the log; and how the labels lie in an effective batch."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from axolotl_aot.data.mapping import BAD, FATE, LEFT_OUT, TOO_LONG, TRUNCATED, USED

if TYPE_CHECKING:
    from datasets import Dataset

# A warning is due where more than this share of the effective batches would hold one label only.
OFTEN = 0.05


@dataclass
class Account:
    """Of one entry. Counts by label are [negative, positive]; of pairs, all stand under positive."""

    entry: str
    rows: int
    bad: int = 0
    left_out: int = 0
    used: list[int] = field(default_factory=lambda: [0, 0])
    truncated: list[int] = field(default_factory=lambda: [0, 0])
    dropped: list[int] = field(default_factory=lambda: [0, 0])
    first_bad: str | None = None  # which row, and why

    def add(self, mapped: "Dataset") -> np.ndarray:
        """Count the mapped samples of a data set; returns which of them are used, shape (samples,)."""
        fates = _column(mapped, FATE)
        labels = _column(mapped, "label") if "label" in mapped.column_names else np.ones_like(fates)
        bad = np.flatnonzero(fates == BAD)
        self.bad += len(bad)
        if len(bad) and self.first_bad is None:
            self.first_bad = mapped[int(bad[0])]["prompt"]
        self.left_out += int((fates == LEFT_OUT).sum())
        kept = (fates == USED) | (fates == TRUNCATED)
        for counts, chosen in (
            (self.used, kept),
            (self.truncated, fates == TRUNCATED),
            (self.dropped, fates == TOO_LONG),
        ):
            for label in (0, 1):
                counts[label] += int((chosen & (labels == label)).sum())
        return kept


def _column(mapped: "Dataset", name: str) -> np.ndarray:
    """A column as integers, shape (samples,); null is 0."""
    return mapped.data.column(name).cast("int8").fill_null(0).to_numpy()


def table(rl: str, accounts: list[Account]) -> str:
    """The accounts as text, one line per entry and label."""
    sides = {"aot_unpaired": ((1, "positive"), (0, "negative")), "aot": ((1, "pairs"),)}[rl]
    header = ("", "rows", "bad", "left out", "", "used", "truncated", "too long, dropped")
    lines = [header]
    for account in accounts:
        own = (account.entry, f"{account.rows:,}", f"{account.bad:,}", f"{account.left_out:,}")
        for label, name in sides:
            counts = account.used[label], account.truncated[label], account.dropped[label]
            lines.append((*own, name, *(f"{count:,}" for count in counts)))
            own = ("", "", "", "")
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    texts = {0, 4}
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i in texts else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def one_label_share(positives: int, negatives: int, size: int, stratified: bool) -> float:
    """The share of batches of `size` samples that are to be expected to hold one label only."""
    total = positives + negatives
    if stratified:
        batches = max(1, -(-total // size))
        return max(0, batches - min(positives, negatives)) / batches
    share = positives / total
    return share**size + (1 - share) ** size
