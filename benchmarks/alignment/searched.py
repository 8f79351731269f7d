"""What the batched search found, as search.csv beside it holds it.

May import `benchmarks.alignment.batched`, `choices`, `results`; NumPy.
"""

import functools
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.alignment.batched.kinds import balanced
from benchmarks.alignment.batched.records import read
from benchmarks.alignment.batched.search import FRESH, Condition, Tried, found, points
from benchmarks.alignment.choices import Best, Place
from benchmarks.alignment.plan import BALANCED as BALANCED_NAME
from benchmarks.alignment.preferences import Data
from benchmarks.alignment.results import NotMeasured

PATH = Path(__file__).with_name("search.csv")
EDGE = r"\*"  # the lowest or highest that was tried
ELSEWHERE = "†"  # none that was tried there: chosen for another place

Point = tuple[str, Data, int, float, float]  # kind, data, epochs, rl_beta, learning rate
Scores = dict[str, float]


class Chosen(NamedTuple):
    """A kind's best point. mean: reward on the validation problems, over as many seeds."""

    at: Best
    mean: float
    seeds: int


class Curve(NamedTuple):
    """Learning rates, ascending, (n,), and rewards on the test problems, (n, fresh seeds)."""

    rates: np.ndarray
    rewards: np.ndarray


class Searched:
    """All of it.

    tried: rewards on the validation problems, of the search's seeds. fresh: scores on the test problems, by
    seed.
    """

    def __init__(self, results: list[dict]):
        self.tried: Tried = found(results)
        self.fresh: dict[Point, dict[int, Scores]] = {}
        for result in results:
            run = result["run"]
            if run.seed in FRESH and "test" in result:
                key = (run.kind, run.data, run.epochs, run.beta, run.learning_rate)
                self.fresh.setdefault(key, {})[run.seed] = result["test"]

    def chosen(self, kind: str, where: Condition) -> Chosen:
        """Raises:
        NotMeasured: it was not tried there.
        """
        best = points(self.tried, kind, where)
        if not best:
            raise NotMeasured(f"{PATH.name} has no run of {kind} with {where}")
        values = self.tried[(kind, *where, best[0].beta, best[0].learning_rate)]
        return Chosen(best[0], float(np.mean(values)), len(values))

    def test(
        self, kind: str, where: Condition, at: Best, score: str = "reward", seeds: range = FRESH
    ) -> np.ndarray:
        """A score on the test problems, of fresh seeds in order.

        Raises:
            NotMeasured: not all of them were run there.
        """
        values = self.fresh.get((kind, *where, at.beta, at.learning_rate), {})
        if not set(values) >= set(seeds):
            raise NotMeasured(f"{PATH.name} has not all fresh seeds of {kind} with {where} at {at}")
        return np.array([values[seed][score] for seed in seeds])

    def curve(self, kind: str, where: Condition) -> Curve:
        """At the `rl_beta` of its best point.

        Raises:
            NotMeasured: fewer than two learning rates have fresh seeds there.
        """
        beta = self.chosen(kind, where).at.beta
        rates = sorted(key[4] for key in self.fresh if key[:4] == (kind, *where, beta))
        if len(rates) < 2:
            raise NotMeasured(f"{PATH.name} has no learning rates of {kind} with {where} at rl_beta {beta:g}")
        return Curve(np.array(rates), np.array([self.test(kind, where, Best(beta, rate)) for rate in rates]))

    def marks(self, place: Place, at: Best) -> tuple[str, str]:
        """Of a choice's `rl_beta` and learning rate: `EDGE`, `ELSEWHERE` or nothing."""
        key = (kind_of(place), place.task, place.flipped, place.positives, place.epochs)
        tried = [
            (beta, rate)
            for name, data, epochs, beta, rate in self.tried
            if (name, data.task, data.flipped, data.positives, epochs) == key
        ]
        point = (at.beta, at.learning_rate)
        if point not in tried:
            return ELSEWHERE, ELSEWHERE
        beta, rate = (
            EDGE if value in (min(values), max(values)) else ""
            for value, values in zip(point, zip(*tried, strict=True), strict=True)
        )
        return beta, rate


def kind_of(place: Place) -> str:
    """What the place's setting is called in the search."""
    return balanced(place.positives) if place.setting == BALANCED_NAME else place.setting


@functools.cache
def read_search(path: Path = PATH) -> Searched:
    return Searched(read(path))
