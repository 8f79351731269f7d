"""UltraFeedback binarised as the YAMLs beside this file read it: the same rows for every method.

    python ultrafeedback.py

Downloads HuggingFaceH4/ultrafeedback_binarized (650 MB) and writes into `ultrafeedback/`:

- train_prefs.jsonl, test_prefs.jsonl: pairs, `chosen` and `rejected`, lists of messages;
- train_prefs_unpaired.jsonl: their answers, `prompt`, `completion` (lists of messages) and `label`, for KTO.
  axolotl shuffles rows before TRL sees them. Given pairs, TRL takes them apart afterwards, the chosen answers
  of a thousand first, and keeps this order: whole batches would be of one label.

Pairs with an empty turn or without a prompt are left out: `rl: aot` stops at them, TRL trains on them. Other
columns are left out as well: with them TRL may take the conversations for plain text.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset

PATH = "HuggingFaceH4/ultrafeedback_binarized"
OUT = Path("ultrafeedback")


def is_whole(row: dict[str, Any]) -> bool:
    """Whether both conversations have a prompt and an answer, and no turn is empty."""
    sides = (row["chosen"], row["rejected"])
    return all(len(turns) > 1 and all((turn["content"] or "").strip() for turn in turns) for turns in sides)


def answers(pairs: Dataset) -> Iterator[dict[str, Any]]:
    for row in pairs:
        for side, label in (("chosen", True), ("rejected", False)):
            yield {"prompt": row[side][:-1], "completion": row[side][-1:], "label": label}


def write(path: str, out: Path) -> None:
    """path: of the data set; out: the folder to write to."""
    for split in ("train_prefs", "test_prefs"):
        rows = load_dataset(path, split=split).select_columns(["chosen", "rejected"])
        pairs = rows.filter(is_whole)
        print(f"{split}: {len(pairs)} pairs, {len(rows) - len(pairs)} with an empty turn left out")
        pairs.to_json(out / f"{split}.jsonl")
        if split == "train_prefs":
            unpaired = Dataset.from_generator(answers, gen_kwargs={"pairs": pairs})
            unpaired.to_json(out / f"{split}_unpaired.jsonl")


if __name__ == "__main__":
    write(*sys.argv[1:2] or [PATH], OUT)
