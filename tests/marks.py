"""Which cases of a table belong to `make test`; the others have the mark `slow`."""

from collections.abc import Iterable

import pytest


def slow_except(quick: Iterable, cases: Iterable) -> list:
    """The cases as parameters of a test, all of them marked slow that are not among the quick ones."""
    quick = list(quick)
    return [case if case in quick else pytest.param(case, marks=pytest.mark.slow) for case in cases]
