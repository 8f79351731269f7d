"""The search's results as a CSV file, a run a line.

Imports `benchmarks.alignment.preferences`, and `training` beside it for the type.
"""

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.alignment.batched.training import Run
from benchmarks.alignment.preferences import Data

SCORES = ("reward", "worst", "malformed", "length", "idle")
PARTS = ("validation", "test")  # problems to choose by, and others; the latter of some seeds only
COLUMNS = (
    *("kind", "task", "count", "flipped", "positives", "epochs", "beta", "learning_rate", "seed"),
    *(f"{part}_{score}" for part in PARTS for score in SCORES),
)
DIGITS = 5

Result = dict[str, Any]  # "run": a Run, and for each part that was scored its scores


def read(path: Path) -> list[Result]:
    """What was written; nothing where there is no file."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [_result(line) for line in csv.DictReader(file)]


def _result(line: dict[str, str]) -> Result:
    data = Data(
        count=int(line["count"]),
        positives=float(line["positives"]) if line["positives"] else None,
        flipped=float(line["flipped"]),
        task=line["task"],
    )
    run = Run(
        kind=line["kind"],
        beta=float(line["beta"]),
        learning_rate=float(line["learning_rate"]),
        seed=int(line["seed"]),
        data=data,
        epochs=int(line["epochs"]),
    )
    scored = [part for part in PARTS if line[f"{part}_reward"]]
    return {
        "run": run,
        **{part: {score: float(line[f"{part}_{score}"]) for score in SCORES} for part in scored},
    }


def append(path: Path, results: Iterable[Result]) -> None:
    """Add results, and first the names of the columns where there is no file."""
    is_new = not path.is_file()
    with path.open("a", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if is_new:
            writer.writerow(COLUMNS)
        for result in results:
            run: Run = result["run"]
            positives = "" if run.data.positives is None else run.data.positives
            writer.writerow(
                [
                    *(run.kind, run.data.task, run.data.count, run.data.flipped, positives, run.epochs),
                    *(run.beta, run.learning_rate, run.seed),
                    *(
                        round(result[part][score], DIGITS) if part in result else ""
                        for part in PARTS
                        for score in SCORES
                    ),
                ]
            )
