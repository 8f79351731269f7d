"""What became of the rows of each entry, as numbers and as a table for the log."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from axolotl_aot.data.mapping import (
    BAD,
    EQUAL_AS_TEXT,
    EQUAL_BY_CUT,
    EQUAL_IN_FILE,
    LEFT_OUT,
    STATUS,
    TOO_LONG,
    TRUNCATED,
    USED,
)
from axolotl_aot.samples import SAMPLE_TYPES

if TYPE_CHECKING:
    from datasets import Dataset

# Which labels a table has lines for, and what it calls them. Pairs are all counted as positive.
LABELS = {"aot": ((1, "pairs"),), "aot_unpaired": ((1, "positive"), (0, "negative"))}

# Where answers that are compared became the same tokens, and what to do about it.
EQUAL = {
    EQUAL_IN_FILE: "chosen and rejected are the same in the file",
    EQUAL_AS_TEXT: "chosen and rejected differ in the file, but `type: {type}` and the chat template make "
    "the same text of them: they differ in white space only, or in what is not read, such as a later turn",
    EQUAL_BY_CUT: "they differ only beyond `sequence_len: {sequence_len}`, where `excess_length_strategy: "
    "truncate` cuts them; enlarge sequence_len, or set `excess_length_strategy: drop`",
}


@dataclass
class RowCounts:
    """Of one entry, as the record of prepared data keeps them.

    entry: its name in messages. rows: of its source. left_out: samples in between the labels, and those of
    `equal`. equal: samples that compare an answer with itself, in the order of `EQUAL`. used, truncated (used
    as well) and dropped (too long) are [negative, positive]; pairs count as positive.
    """

    entry: str
    rows: int
    bad: int = 0
    left_out: int = 0
    used: list[int] = field(default_factory=lambda: [0, 0])
    truncated: list[int] = field(default_factory=lambda: [0, 0])
    dropped: list[int] = field(default_factory=lambda: [0, 0])
    first_bad: str | None = None  # which row, and why
    equal: list[int] = field(default_factory=lambda: [0] * len(EQUAL))
    first_equal: str | None = None  # which row

    def add(self, mapped: "Dataset") -> np.ndarray:
        """Count the mapped samples of a data set; returns which of them are used, shape (samples,)."""
        status = _column(mapped, STATUS)
        labels = _column(mapped, "label") if "label" in mapped.column_names else np.ones_like(status)
        bad = np.flatnonzero(status == BAD)
        self.bad += len(bad)
        if len(bad) and self.first_bad is None:
            self.first_bad = mapped[int(bad[0])]["prompt"]
        equal = np.isin(status, list(EQUAL))
        if equal.any() and self.first_equal is None:
            self.first_equal = mapped[int(np.flatnonzero(equal)[0])]["prompt"]
        for i, where in enumerate(EQUAL):
            self.equal[i] += int((status == where).sum())
        self.left_out += int((status == LEFT_OUT).sum() + equal.sum())
        used = (status == USED) | (status == TRUNCATED)
        for counts, chosen in (
            (self.used, used),
            (self.truncated, status == TRUNCATED),
            (self.dropped, status == TOO_LONG),
        ):
            for label in (0, 1):
                counts[label] += int((chosen & (labels == label)).sum())
        return used

    def equal_pairs(self, rl: str, **values: Any) -> str | None:
        """What to say of samples that compare an answer with itself; None where there are none.

        values: what the texts of `EQUAL` name.
        """
        if not sum(self.equal):
            return None
        noun = "pairs have" if SAMPLE_TYPES[rl].paired else "answers stand with"
        causes = [
            f"{count:,}: {cause.format(**values)}"
            for count, cause in zip(self.equal, EQUAL.values(), strict=True)
            if count
        ]
        which = (
            "two answers that are the same tokens" if SAMPLE_TYPES[rl].paired else "both labels in their row"
        )
        return (
            f"{sum(self.equal):,} {noun} {which}, from which nothing can be learnt; they are left out. The "
            f"first is {self.first_equal}. {'. '.join(causes)}"
        )


def _column(mapped: "Dataset", name: str) -> np.ndarray:
    """A column as integers, shape (samples,); null is 0."""
    return mapped.data.column(name).cast("int8").fill_null(0).to_numpy()


def table(rl: str, entries: list[RowCounts]) -> str:
    """The counts as text, one line per entry and label."""
    header = ("", "rows", "bad", "left out", "of these equal", "", "used", "truncated", "too long, dropped")
    lines: list[tuple[str, ...]] = [header]
    for entry in entries:
        numbers = (entry.rows, entry.bad, entry.left_out, sum(entry.equal))
        cells = (entry.entry, *(f"{count:,}" for count in numbers))
        for label, name in LABELS[rl]:
            counts = entry.used[label], entry.truncated[label], entry.dropped[label]
            lines.append((*cells, name, *(f"{count:,}" for count in counts)))
            cells = ("",) * len(cells)  # the entry's name and rows stand in its first line only
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    texts = {0, 5}  # columns that are text, and aligned to the left
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i in texts else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
