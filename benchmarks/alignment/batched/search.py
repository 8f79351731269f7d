"""What is searched, in the order of its weight; and what is chosen from it.

Imports `benchmarks.alignment.preferences`, and `kinds` and `training` beside it.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np

from benchmarks.alignment.batched.kinds import CONTENDERS, SHARES, VARIANTS, balanced
from benchmarks.alignment.batched.training import Run
from benchmarks.alignment.preferences import Data

COUNT = 2048
FLIPPED = 0.2
SEEDS, FRESH = range(3), range(5, 15)
BETAS = (0.1, 0.3, 1.0, 3.0, 10.0)
RATES = (1.5e-4, 3e-4, 6e-4, 1.2e-3, 2.4e-3, 4.8e-3, 9.6e-3)
LONGER = 4  # epochs
LONGER_BETAS, LONGER_RATES = (0.3, 1.0, 3.0), (7.5e-5, 1.5e-4, 3e-4, 6e-4, 1.2e-3)
VARIANT_BETAS, VARIANT_RATES = (0.3, 1.0, 3.0), (6e-4, 1.2e-3, 2.4e-3, 4.8e-3)
FINALISTS = 8

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
        if run.seed in SEEDS:
            key = (run.kind, run.data, run.epochs, run.beta, run.learning_rate)
            tried[key].append(result["validation"]["reward"])
    return tried


def best(tried: Tried, kind: str, where: Condition) -> tuple[float, float] | None:
    """rl_beta and learning rate of the largest mean; None where nothing was tried."""
    means = {key[3:]: np.mean(values) for key, values in tried.items() if key[:3] == (kind, *where)}
    return max(means, key=means.get) if means else None


# --- The stages, each from the results so far -------------------------------------------------------


def grid(results: list[dict]) -> list[Run]:
    return _runs(CONTENDERS, BETAS, RATES, SEEDS, conditions())


def refined(results: list[dict]) -> list[Run]:
    """Half-way to the neighbours of each setting's best learning rate."""
    tried, runs = found(results), []
    for where in conditions():
        for kind in CONTENDERS:
            if point := best(tried, kind, where):
                rates = [float(f"{point[1] * factor:.3g}") for factor in (2**-0.5, 2**0.5)]
                runs += _runs([kind], point[:1], rates, SEEDS, [where])
    return runs


def rates(results: list[dict]) -> list[Run]:
    """Every learning rate at the best rl_beta, with fresh seeds."""
    tried, runs = found(results), []
    for where in conditions():
        for kind in CONTENDERS:
            if point := best(tried, kind, where):
                runs += _runs([kind], point[:1], sorted({*RATES, point[1]}), FRESH, [where])
    return runs


def variants(results: list[dict]) -> list[Run]:
    return _runs(VARIANTS, VARIANT_BETAS, VARIANT_RATES, SEEDS, conditions()[:3])


def finalists(results: list[dict]) -> list[Run]:
    """Of all variants, at each one's best, with fresh seeds."""
    tried, runs = found(results), []
    for where in conditions()[:3]:
        for kind in VARIANTS:
            if point := best(tried, kind, where):
                runs += _runs([kind], point[:1], point[1:], FRESH, [where])
    return runs


def longer(results: list[dict]) -> list[Run]:
    where = [Condition(data, LONGER) for data, _ in conditions() if not data.flipped]
    return _runs(CONTENDERS, LONGER_BETAS, LONGER_RATES, SEEDS, where)


def few(results: list[dict]) -> list[Run]:
    runs = []
    for share in SHARES:
        where = [Condition(Data(2 * COUNT, positives=share))]
        kinds = ["kto", balanced(share), "aot_unpaired", "aot_unpaired, entropic", "aot_unpaired, anchor"]
        runs += _runs(kinds, VARIANT_BETAS, RATES[1:6], SEEDS, where)
    return runs


STAGES: dict[str, Callable[[list[dict]], list[Run]]] = {
    stage.__name__: stage for stage in (grid, refined, few, rates, longer, variants, finalists)
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
