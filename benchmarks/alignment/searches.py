"""The searches: which `rl_beta` and learning rate are best for what.

May import `benchmarks.alignment.cells`, `choices`, `plan`, `preferences`, `results`.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TypeVar

from benchmarks.alignment.cells import PAIRED, Cell
from benchmarks.alignment.choices import Best
from benchmarks.alignment.plan import (
    LARGEST_MICRO_BATCH,
    METHODS,
    MICRO_BATCHES,
    ORDERS,
    PENALTIES,
    SOFT_STRENGTH,
    USUAL_LOSS,
    USUAL_SIZE,
    Plan,
)
from benchmarks.alignment.preferences import Data
from benchmarks.alignment.results import Results

Rows = dict[tuple, list[Cell]]  # cells over seeds, by what they have in common
Key = TypeVar("Key")


def best_key(results: Results, rows: Mapping[Key, list[Cell]]) -> Key:
    return max(rows, key=lambda key: results.mean(rows[key], "validation"))


def best_of(results: Results, rows: Rows) -> Best:
    cell = rows[best_key(results, rows)][0]
    return Best(cell.beta, cell.learning_rate)


def times(rate: float, factor: float) -> float:
    """A learning rate of three digits."""
    return float(f"{rate * factor:.3g}")


# --- The grid, and what is best ---------------------------------------------------------------------


def point(plan: Plan, method: str, beta: float, learning_rate: float, seed: int) -> Cell:
    samples = min(USUAL_SIZE, plan.count // 4)
    if method not in PAIRED:
        samples *= 2
    return Cell(method, beta, learning_rate, seed, Data(plan.count), samples, samples)


def over(plan: Plan, method: str, at: Best, seeds: range) -> list[Cell]:
    return [point(plan, method, at.beta, at.learning_rate, seed) for seed in seeds]


def points(plan: Plan, method: str, betas: Iterable[float], rates: Iterable[float]) -> Rows:
    """By (method, beta, learning rate): on the grid's seeds."""
    return {
        (method, beta, rate): over(plan, method, Best(beta, rate), plan.seeds)
        for beta in betas
        for rate in rates
    }


def grid(plan: Plan, results: Results) -> Rows:
    rows: Rows = {}
    for method in METHODS:
        rows |= points(plan, method, plan.betas, plan.learning_rates)
    return rows


def best_on_grid(plan: Plan, results: Results, method: str, betas: Iterable[float] | None = None) -> Best:
    return best_of(results, points(plan, method, betas or plan.betas, plan.learning_rates))


def _refined(plan: Plan, results: Results, method: str, betas: Iterable[float] | None = None) -> Rows:
    found = best_on_grid(plan, results, method, betas)
    rates = [found.learning_rate, *(times(found.learning_rate, factor) for factor in plan.factors)]
    return points(plan, method, [found.beta], rates)


def refined(plan: Plan, results: Results) -> Rows:
    """By (method, beta, learning rate): each beta's best of the grid, and half-way to its neighbours."""
    rows: Rows = {}
    for method in METHODS:
        for beta in plan.betas:
            rows |= _refined(plan, results, method, [beta])
    return rows


def best(plan: Plan, results: Results, method: str, betas: Iterable[float] | None = None) -> Best:
    """betas: from which; None: from all."""
    return best_of(results, _refined(plan, results, method, betas))


def at_best(plan: Plan, results: Results, method: str, seeds: range) -> list[Cell]:
    return over(plan, method, best(plan, results, method), seeds)


# --- Other losses -----------------------------------------------------------------------------------


def loss_keys(penalty: str, order: str, sort: str) -> dict[str, str | float]:
    """Of the YAML; defaults are left out, so that such a cell is one that another table has, too."""
    names = ("aot_penalty", "aot_dominance", "aot_sort")
    chosen = zip(names, (penalty, order, sort), USUAL_LOSS, strict=True)
    keys: dict[str, str | float] = {name: value for name, value, default in chosen if value != default}
    return keys | ({"aot_soft_sort_strength": SOFT_STRENGTH} if sort == "soft" else {})


def with_loss(plan: Plan, loss: tuple[str, str, str], at: Best, seeds: range) -> list[Cell]:
    """loss: penalty, order, sort."""
    return [replace(cell, keys=loss_keys(*loss)) for cell in over(plan, "aot", at, seeds)]


def loss_points(plan: Plan, penalty: str, order: str) -> Rows:
    return {
        (penalty, order, beta, rate): with_loss(
            plan, (penalty, order, "hard"), Best(beta, rate), plan.search_seeds
        )
        for beta in plan.search_betas
        for rate in plan.search_rates
    }


def loss_search(plan: Plan, results: Results) -> Rows:
    """By (penalty, order, beta, learning rate): on the search's seeds; the usual loss has the grid."""
    rows: Rows = {}
    for penalty in PENALTIES:
        for order in ORDERS:
            if (penalty, order) != USUAL_LOSS[:2]:
                rows |= loss_points(plan, penalty, order)
    return rows


# --- The effective batch ----------------------------------------------------------------------------


def of_size(
    plan: Plan, results: Results, size: int, micro_batch: int | None, factor: float, seeds: range
) -> list[Cell]:
    """The learning rate goes with the root of the size, as Adam's steps want it, times a factor.

    micro_batch: what is sorted; None: the whole effective batch.
    """
    keys = {} if micro_batch is None else {"aot_scope": "micro_batch"}
    return [
        replace(
            cell,
            learning_rate=times(cell.learning_rate, factor * math.sqrt(size / cell.samples)),
            samples=size,
            micro_batch=micro_batch or min(size, LARGEST_MICRO_BATCH),
            keys=keys,
        )
        for cell in at_best(plan, results, "aot", seeds)
    ]


def scopes(plan: Plan) -> list[tuple[int, int | None]]:
    """Pairs of a size and the micro-batch that is sorted; that of the batch's size is the whole of it."""
    return [(size, micro) for size in plan.sizes for micro in (None, *MICRO_BATCHES) if micro != size]


def size_points(
    plan: Plan, results: Results, size: int, micro: int | None, factors: Iterable[float]
) -> dict[float, list[Cell]]:
    """By the factor of the learning rate: on the search's seeds."""
    return {factor: of_size(plan, results, size, micro, factor, plan.search_seeds) for factor in factors}


def candidates(plan: Plan, results: Results, size: int, micro: int | None) -> dict[float, list[Cell]]:
    return size_points(plan, results, size, micro, plan.search_factors)


def finalists(plan: Plan, results: Results, size: int, micro: int | None) -> dict[float, list[Cell]]:
    """`candidates` of the best factor and, where that is the lowest or highest one, of one step beyond."""
    factors = plan.search_factors
    found = best_key(results, candidates(plan, results, size, micro))
    beyond = {min(factors): min(factors) / 2, max(factors): max(factors) * 2} if len(factors) > 1 else {}
    return size_points(plan, results, size, micro, [found, beyond.get(found, found)])


def _of_all_sizes(plan: Plan, results: Results, of_one: Callable[..., dict[float, list[Cell]]]) -> Rows:
    """By (size, micro-batch, factor of the learning rate)."""
    return {
        (size, micro, factor): cells
        for size, micro in scopes(plan)
        for factor, cells in of_one(plan, results, size, micro).items()
    }


def size_search(plan: Plan, results: Results) -> Rows:
    """By (size, micro-batch, factor of the learning rate)."""
    return _of_all_sizes(plan, results, candidates)


def size_finalists(plan: Plan, results: Results) -> Rows:
    """By (size, micro-batch, factor of the learning rate): those that the best is chosen from at last."""
    return _of_all_sizes(plan, results, finalists)
