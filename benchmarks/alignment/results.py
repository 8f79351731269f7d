"""Results as JSON lines, found by their cell. Imports `benchmarks.alignment.cells` and NumPy."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.alignment.cells import Cell


class NotMeasured(LookupError):
    """There is no result of a cell yet."""


class Results:
    """What has been measured so far; a line is added as soon as a cell has ended."""

    def __init__(self, path: Path):
        self.path = path
        self._found: dict[str, dict[str, Any]] = {}
        if path.is_file():
            for line in path.read_text("utf-8").splitlines():
                self._keep(json.loads(line))

    def _keep(self, result: dict[str, Any]) -> None:
        self._found[json.dumps(result["cell"], sort_keys=True)] = result

    def add(self, result: dict[str, Any]) -> None:
        self._keep(result)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")

    def bases(self, task: str) -> set[str]:
        """Digests of the task's base models that the results are of."""
        found = self._found.values()
        return {result["base"] for result in found if result["cell"]["data"]["task"] == task}

    def missing(self, cells: Iterable[Cell]) -> list[Cell]:
        """Those without a result, each once."""
        return [cell for name, cell in {cell.name: cell for cell in cells}.items() if name not in self._found]

    def of(self, cell: Cell) -> dict[str, Any]:
        if cell.name not in self._found:
            raise NotMeasured(cell.name)
        return self._found[cell.name]

    def values(self, cells: list[Cell], part: str = "test", score: str = "reward") -> np.ndarray:
        """A score of each cell, shape (cells,)."""
        return np.array([self.of(cell)[part][score] for cell in cells])

    def mean(self, cells: list[Cell], part: str = "test", score: str = "reward") -> float:
        return self.values(cells, part, score).mean().item()
