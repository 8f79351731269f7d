"""docs/upstream.md's table of what the project leans on in other packages, and what a check of a row is."""

import functools
import re
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).parents[1]


class Row(NamedTuple):
    """A row of the table: of which packages, what is leaned on, and in which files."""

    of: str
    what: str
    where: str


def read_table() -> list[Row]:
    text = (ROOT / "docs/upstream.md").read_text()
    table = re.search(r"^\| of \| what \| where \|\n(?:\|.*\n)+", text, re.MULTILINE).group()
    lines = table.splitlines()[2:]
    return [Row(*(cell.strip() for cell in line.strip("|").split(" | "))) for line in lines]


TABLE = read_table()
GUARDED: list[tuple[str, str]] = []  # of each check: its row's first column, and words of the second


def rows_of(of: str, words: str) -> list[Row]:
    return [row for row in TABLE if row.of == of and words in row.what]


def guards(of: str, words: str, breaks: str) -> Callable:
    """A check of the one row whose first column is `of` and whose second contains `words`.

    breaks: what of this package no longer holds where the check fails, in a sentence.
    """

    def decorate(check: Callable) -> Callable:
        GUARDED.append((of, words))

        @functools.wraps(check)
        def guarded(*args: Any, **kwargs: Any) -> None:
            try:
                check(*args, **kwargs)
            # a name that is gone says as much as an assertion, or as something that is not raised
            except (Exception, pytest.fail.Exception) as error:
                versions = ", ".join(f"{name} {version(name)}" for name in of.split(", "))
                where = ", ".join(row.where for row in rows_of(of, words))
                message = f"{versions}: {breaks} ({where}). {type(error).__name__}: {error}"
                raise AssertionError(message) from error

        return guarded

    return decorate
