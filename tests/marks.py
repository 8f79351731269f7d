"""Which cases of a table belong to `make test`, the others being marked slow; which need a newer package."""

import itertools
from collections.abc import Iterable
from importlib.metadata import version

import pytest
from packaging.version import Version


def slow_except(quick: Iterable, cases: Iterable) -> list:
    """The cases as parameters of a test, all of them marked slow that are not among the quick ones."""
    quick = list(quick)
    return [case if case in quick else pytest.param(case, marks=pytest.mark.slow) for case in cases]


def half_slow(*factors: Iterable) -> list:
    """All combinations of three or more factors as parameters of a test, every other one marked slow.

    Those that are left hold each value of a factor with each value of every other one: whatever the
    positions of the two, that of a third makes their sum even.
    """
    cases = []
    for places in itertools.product(*(list(enumerate(factor)) for factor in factors)):
        marks = [pytest.mark.slow] if sum(place for place, _ in places) % 2 else []
        cases.append(pytest.param(*(value for _, value in places), marks=marks))
    return cases


def needs(package: str, release: str, why: str) -> pytest.MarkDecorator:
    """For what does not work with a package that the oldest supported axolotl pins."""
    missing = Version(version(package)) < Version(release)
    return pytest.mark.skipif(missing, reason=f"{package} {release}: {why}")
