"""What became of the rows of each entry, as numbers and as a table for the log."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from axolotl_aot.data.mapping import BAD, LEFT_OUT, STATUS, TOO_LONG, TRUNCATED, USED

if TYPE_CHECKING:
    from datasets import Dataset

# Which labels a table has lines for, and what it calls them. Pairs are all counted as positive.
LABELS = {"aot": ((1, "pairs"),), "aot_unpaired": ((1, "positive"), (0, "negative"))}


@dataclass
class RowCounts:
    """Of one entry, as the record of prepared data keeps them.

    entry: its name in messages. rows: of its source. used, truncated (used as well) and dropped (too long)
    are [negative, positive]; pairs count as positive.
    """

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
        status = _column(mapped, STATUS)
        labels = _column(mapped, "label") if "label" in mapped.column_names else np.ones_like(status)
        bad = np.flatnonzero(status == BAD)
        self.bad += len(bad)
        if len(bad) and self.first_bad is None:
            self.first_bad = mapped[int(bad[0])]["prompt"]
        self.left_out += int((status == LEFT_OUT).sum())
        used = (status == USED) | (status == TRUNCATED)
        for counts, chosen in (
            (self.used, used),
            (self.truncated, status == TRUNCATED),
            (self.dropped, status == TOO_LONG),
        ):
            for label in (0, 1):
                counts[label] += int((chosen & (labels == label)).sum())
        return used


def _column(mapped: "Dataset", name: str) -> np.ndarray:
    """A column as integers, shape (samples,); null is 0."""
    return mapped.data.column(name).cast("int8").fill_null(0).to_numpy()


def table(rl: str, entries: list[RowCounts]) -> str:
    """The counts as text, one line per entry and label."""
    header = ("", "rows", "bad", "left out", "", "used", "truncated", "too long, dropped")
    lines = [header]
    for entry in entries:
        cells = (entry.entry, f"{entry.rows:,}", f"{entry.bad:,}", f"{entry.left_out:,}")
        for label, name in LABELS[rl]:
            counts = entry.used[label], entry.truncated[label], entry.dropped[label]
            lines.append((*cells, name, *(f"{count:,}" for count in counts)))
            cells = ("", "", "", "")  # the entry's name and rows stand in its first line only
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    texts = {0, 4}  # columns that are text, and aligned to the left
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i in texts else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
