"""Results as they come, and as Markdown tables."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

Result = dict[str, Any]


class Results:
    """Prints each result as it comes; with a path, all so far are kept there."""

    def __init__(self, path: Path | None = None):
        self._path = path
        self._all: list[Result] = []

    def add(self, result: Result) -> Result:
        self._all.append(result)
        print("RESULT " + json.dumps(result), flush=True)
        if self._path is not None:
            self._path.write_text(json.dumps(self._all, indent=2))
        return result


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells, with an empty line after it."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def number(result: Result, key: str, form: str = ".2f", scale: float = 1.0) -> str:
    """A cell; empty where there is no such figure."""
    return format(result[key] / scale, form) if key in result else ""


def ratio(result: Result, first: Result, key: str) -> str:
    """A figure as a share of the first one's; empty where one of them has none."""
    if key not in result or not first.get(key):
        return ""
    return f"{result[key] / first[key]:.2f}"


def megabytes(result: Result, key: str) -> str:
    return number(result, key, ",.0f", 2**20)
