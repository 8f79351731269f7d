"""What is searched, in the order of its weight; and what is chosen from it.

Imports `benchmarks.alignment.choices` and `preferences`, and `kinds` and `training` beside it.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np

from benchmarks.alignment.batched.kinds import BALANCED, CONTENDERS, SHARES, VARIANTS, balanced
from benchmarks.alignment.batched.training import Run
from benchmarks.alignment.choices import Best, Choices, Place
from benchmarks.alignment.preferences import Data

COUNT = 2048
FLIPPED = 0.2
SEEDS, MORE, FRESH, FEWER = range(3), range(15, 20), range(5, 15), range(5, 10)
POINTS, VARIANT_POINTS = 4, 2  # of each search, that are tried with more seeds
BETAS = (0.1, 0.3, 1.0, 3.0, 10.0)
RATES = (1.5e-4, 3e-4, 6e-4, 1.2e-3, 2.4e-3, 4.8e-3, 9.6e-3)
LONGER = 4  # epochs
LONGER_BETAS, LONGER_RATES = (0.3, 1.0, 3.0), (7.5e-5, 1.5e-4, 3e-4, 6e-4, 1.2e-3)
VARIANT_BETAS = (0.3, 1.0, 3.0)
VARIANT_RATES = {"sorting": (6e-4, 1.2e-3, 2.4e-3), "covering": (1.2e-3, 2.4e-3, 4.8e-3)}
FEW = ("kto", "aot_unpaired", "aot_unpaired, entropic", "aot_unpaired, anchor", "aot_unpaired, doubted")
WITHIN = 0.02  # of the best: variants that are measured with fresh seeds

Tried = dict[tuple[str, Data, int, float, float], list[float]]  # validation rewards by seed


class Condition(NamedTuple):
    data: Data
    epochs: int = 1


def conditions() -> list[Condition]:
    return [
        Condition(Data(COUNT, flipped=flipped, task=task))
        for task in ("sorting", "covering")
        for flipped in (0.0, FLIPPED)
    ]


def _runs(
    kinds: Iterable[str],
    betas: Iterable[float],
    rates: Iterable[float],
    seeds: Iterable[int],
    where: Iterable[Condition],
) -> list[Run]:
    return [
        Run(kind, beta, rate, seed, data, epochs)
        for data, epochs in where
        for kind in kinds
        for beta in betas
        for rate in rates
        for seed in seeds
    ]


def found(results: Iterable[dict]) -> Tried:
    """Of the search's seeds."""
    tried: Tried = defaultdict(list)
    for result in results:
        run = result["run"]
        if run.seed in SEEDS or run.seed in MORE:
            key = (run.kind, run.data, run.epochs, run.beta, run.learning_rate)
            tried[key].append(result["validation"]["reward"])
    return tried


def points(tried: Tried, kind: str, where: Condition) -> list[Best]:
    """The best first, of those that were tried with most seeds."""
    values = {key[3:]: found for key, found in tried.items() if key[:3] == (kind, *where)}
    most = max(map(len, values.values()), default=0)
    means = {point: np.mean(found) for point, found in values.items() if len(found) == most}
    return [Best(*point) for point in sorted(means, key=means.get, reverse=True)]


def best(tried: Tried, kind: str, where: Condition) -> Best | None:
    """The largest mean; None where nothing was tried."""
    return next(iter(points(tried, kind, where)), None)


def choices(results: list[dict]) -> Choices:
    """Of the settings, where they are compared."""
    tried = found(results)
    return {
        Place(where.data.task, kind, where.data.flipped): point
        for where in conditions()
        for kind in CONTENDERS
        if (point := best(tried, kind, where))
    }


# --- The stages, each from the results so far -------------------------------------------------------


def grid(results: list[dict]) -> list[Run]:
    return _runs(CONTENDERS, BETAS, RATES, SEEDS, conditions())


def refined(results: list[dict]) -> list[Run]:
    """Half-way to the neighbours of each setting's best learning rate."""
    tried, runs = found(results), []
    for where in conditions():
        for kind in CONTENDERS:
            if point := best(tried, kind, where):
                rates = [float(f"{point.learning_rate * factor:.3g}") for factor in (2**-0.5, 2**0.5)]
                runs += _runs([kind], [point.beta], rates, SEEDS, [where])
    return runs


def _confirmed(results: list[dict], kinds: Iterable[str], count: int) -> list[Run]:
    """The best points of everything that was searched, with more seeds: few flatter one by chance."""
    tried, runs = found(results), []
    for kind, data, epochs in dict.fromkeys(key[:3] for key in tried):
        if kind in kinds:
            where = Condition(data, epochs)
            for point in points(tried, kind, where)[:count]:
                runs += _runs([kind], [point.beta], [point.learning_rate], MORE, [where])
    return runs


def confirmed(results: list[dict]) -> list[Run]:
    return _confirmed(results, {**CONTENDERS, **BALANCED}, POINTS)


def rates(results: list[dict]) -> list[Run]:
    """Every learning rate at the best rl_beta, with fresh seeds."""
    tried, runs = found(results), []
    for where in conditions():
        for kind in CONTENDERS:
            if point := best(tried, kind, where):
                some = sorted({*RATES, point.learning_rate})
                runs += _runs([kind], [point.beta], some, FRESH, [where])
    return runs


def variants(results: list[dict]) -> list[Run]:
    return [
        run
        for where in conditions()[:3]
        for run in _runs(VARIANTS, VARIANT_BETAS, VARIANT_RATES[where.data.task], SEEDS, [where])
    ]


def _close(results: list[dict], where: Condition) -> list[str]:
    """The variants that come close to the best of all."""
    tried = found(results)
    tops = {kind: best(tried, kind, where) for kind in (*CONTENDERS, *VARIANTS)}
    means = {kind: np.mean(tried[(kind, *where, *_pair(top))]) for kind, top in tops.items() if top}
    return [kind for kind in VARIANTS if kind in means and means[kind] > max(means.values()) - WITHIN]


def _pair(point: Best) -> tuple[float, float]:
    return point.beta, point.learning_rate


def variants_confirmed(results: list[dict]) -> list[Run]:
    close = {kind for where in conditions() for kind in _close(results, where)}
    return _confirmed(results, close, VARIANT_POINTS)


def _measured(
    results: list[dict], where: Iterable[Condition], kinds: Iterable[str], seeds: range
) -> list[Run]:
    """Each at its best point, with fresh seeds."""
    tried = found(results)
    return [
        run
        for condition in where
        for kind in kinds
        if (point := best(tried, kind, condition))
        for run in _runs([kind], [point.beta], [point.learning_rate], seeds, [condition])
    ]


def finalists(results: list[dict]) -> list[Run]:
    """The variants that come close to the best of all."""
    return [
        run for where in conditions() for run in _measured(results, [where], _close(results, where), FRESH)
    ]


def _longer() -> list[Condition]:
    return [Condition(data, LONGER) for data, _ in conditions() if not data.flipped]


def _few(share: float) -> Condition:
    return Condition(Data(2 * COUNT, positives=share))


def longer(results: list[dict]) -> list[Run]:
    return _runs(CONTENDERS, LONGER_BETAS, LONGER_RATES, SEEDS, _longer())


def longer_measured(results: list[dict]) -> list[Run]:
    return _measured(results, _longer(), CONTENDERS, FEWER)


def few(results: list[dict]) -> list[Run]:
    return [
        run
        for share in SHARES
        for run in _runs([*FEW, balanced(share)], VARIANT_BETAS, RATES[1:6], SEEDS, [_few(share)])
    ]


def few_measured(results: list[dict]) -> list[Run]:
    return [
        run for share in SHARES for run in _measured(results, [_few(share)], [*FEW, balanced(share)], FEWER)
    ]


STAGES: dict[str, Callable[[list[dict]], list[Run]]] = {
    stage.__name__: stage
    for stage in (
        grid,
        refined,
        few,
        longer,
        confirmed,
        rates,
        variants,
        variants_confirmed,
        finalists,
        few_measured,
        longer_measured,
    )
}


def groups(runs: list[Run], size: int) -> Iterator[list[Run]]:
    """Runs that can be trained together, those of one loss beside each other."""
    by_data = defaultdict(list)
    for run in runs:
        by_data[run.data, run.epochs].append(run)
    for some in by_data.values():
        some.sort(key=lambda run: list(dict.fromkeys(r.kind for r in runs)).index(run.kind))
        for begin in range(0, len(some), size):
            yield some[begin : begin + size]
