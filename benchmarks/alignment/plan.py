"""Which cells answer which question. The grid comes first; the other tables take each method's best of it.

May import `benchmarks.alignment.cells`, `results`, `task`.
"""

import math
from dataclasses import dataclass, replace

from benchmarks.alignment.cells import BASE, PAIRED, Cell
from benchmarks.alignment.results import Results
from benchmarks.alignment.task import BASE_STEPS, Data

METHODS = ("dpo", "ipo", "kto", "aot", "aot_unpaired")
# What results.jsonl holds; what is added to `axolotl_aot.dominance` joins with a new run.
PENALTIES = ("logistic", "squared_hinge", "least_squares")
ORDERS = ("first", "second")
SORTS = ("hard", "soft")
SOFT_STRENGTH = 10.0  # the default changes nothing where neighbouring rewards lie less than 10 nats apart
BALANCED = "kto_desirable_weight"  # its key: how much more a positive counts
USUAL_SIZE = 64  # pairs of an optimizer step; twice as many answers, so that the work is the same
LARGEST_MICRO_BATCH = 128


@dataclass(frozen=True)
class Plan:
    """How large each part is.

    seeds: of the grid and of what is compared within it; fresh_seeds: of all the other tables, so that the
    choice by the grid does not flatter. margins: of the penalties other than the logistic one.
    """

    count: int
    base_steps: int
    seeds: range
    fresh_seeds: range
    betas: tuple[float, ...]
    learning_rates: tuple[float, ...]
    margins: tuple[float, ...]
    sizes: tuple[int, ...]
    positives: tuple[float, ...]
    flips: tuple[float, ...]


FULL = Plan(
    count=2048,
    base_steps=BASE_STEPS,
    seeds=range(5),
    fresh_seeds=range(5, 10),
    betas=(0.01, 0.1, 0.3, 1.0, 3.0, 10.0),
    learning_rates=(3e-4, 6e-4, 1.2e-3, 2.4e-3),
    margins=(0.3, 1.0, 3.0, 10.0),
    sizes=(2, 4, 16, 64, 256),
    positives=(0.5, 0.2, 0.05, 0.01),
    flips=(0.0, 0.1, 0.2, 0.4),
)
SMALL = Plan(
    count=128,
    base_steps=150,
    seeds=range(1),
    fresh_seeds=range(1, 2),
    betas=(1.0,),
    learning_rates=(1e-3,),
    margins=(1.0,),
    sizes=(4, 16),
    positives=(0.5, 0.05),
    flips=(0.0, 0.2),
)


Rows = dict[tuple, list[Cell]]


@dataclass(frozen=True)
class Best:
    """A method's best point of the grid, by the mean reward on the validation problems."""

    beta: float
    learning_rate: float


# --- The grid ---------------------------------------------------------------------------------------


def point(plan: Plan, method: str, beta: float, learning_rate: float, seed: int) -> Cell:
    samples = min(USUAL_SIZE, plan.count // 4)
    if method not in PAIRED:
        samples *= 2
    return Cell(method, beta, learning_rate, seed, Data(plan.count), samples, samples)


def grid(plan: Plan, results: Results) -> Rows:
    """By (seed,): every method at every point."""
    return {
        (seed,): [
            point(plan, method, beta, rate, seed)
            for method in METHODS
            for beta in plan.betas
            for rate in plan.learning_rates
        ]
        for seed in plan.seeds
    }


def best_rate(plan: Plan, results: Results, method: str, beta: float) -> float:
    return max(
        plan.learning_rates,
        key=lambda rate: results.mean([point(plan, method, beta, rate, s) for s in plan.seeds], "validation"),
    )


def best(plan: Plan, results: Results, method: str) -> Best:
    points = [Best(beta, best_rate(plan, results, method, beta)) for beta in plan.betas]
    return max(
        points,
        key=lambda p: results.mean(
            [point(plan, method, p.beta, p.learning_rate, s) for s in plan.seeds], "validation"
        ),
    )


# --- The tables' cells, by what is compared in them; each a list over the same seeds ------------------


def methods(plan: Plan, results: Results) -> Rows:
    """By (method,): each at its best, on fresh seeds."""
    found = {method: best(plan, results, method) for method in METHODS}
    return {
        (method,): [point(plan, method, b.beta, b.learning_rate, seed) for seed in plan.fresh_seeds]
        for method, b in found.items()
    }


def base(plan: Plan, results: Results) -> Rows:
    """By ("base",): the model before training, its answers sampled with each seed."""
    return {(BASE,): [Cell(BASE, 0.0, 0.0, seed, Data(0), 1, 1) for seed in plan.fresh_seeds]}


def betas(plan: Plan, results: Results) -> Rows:
    """By (method, beta): at the best learning rate of each."""
    return {
        (method, beta): [
            point(plan, method, beta, best_rate(plan, results, method, beta), seed) for seed in plan.seeds
        ]
        for method in METHODS
        for beta in plan.betas
    }


def sizes(plan: Plan, results: Results) -> Rows:
    """By (size, scope): the learning rate goes with the root of the size, as Adam's steps want it."""
    rows: Rows = {}
    usual = methods(plan, results)[("aot",)]
    for size in plan.sizes:
        for scope, micro_batch in (
            ("effective_batch", min(size, LARGEST_MICRO_BATCH)),
            ("micro_batch of 1", 1),
            ("micro_batch of 2", 2),
        ):
            keys = {} if scope == "effective_batch" else {"aot_scope": "micro_batch"}
            rows[size, scope] = [
                replace(
                    cell,
                    learning_rate=cell.learning_rate * math.sqrt(size / cell.samples),
                    samples=size,
                    micro_batch=micro_batch,
                    keys=keys,
                )
                for cell in usual
            ]
    return rows


def margin_search(plan: Plan, results: Results) -> Rows:
    """By (penalty, margin), for the penalties whose beta is a margin in nats."""
    rate = best(plan, results, "aot").learning_rate
    return {
        (penalty, margin): [
            replace(point(plan, "aot", margin, rate, seed), keys={"aot_penalty": penalty})
            for seed in plan.seeds
        ]
        for penalty in PENALTIES[1:]
        for margin in plan.margins
    }


def losses(plan: Plan, results: Results) -> Rows:
    """By (penalty, order, sort)."""
    usual = methods(plan, results)[("aot",)]
    searched = margin_search(plan, results)
    rows: Rows = {}
    for penalty in PENALTIES:
        beta = usual[0].beta
        if penalty != "logistic":
            beta = max(plan.margins, key=lambda m: results.mean(searched[penalty, m], "validation"))
        for order in ORDERS:
            for sort in SORTS:
                named = {"aot_penalty": penalty, "aot_dominance": order, "aot_sort": sort}
                # defaults are left out: such a cell is then one that another table has, too
                defaults = ("logistic", "first", "hard")
                keys = {k: v for (k, v), d in zip(named.items(), defaults, strict=True) if v != d}
                if sort == "soft":
                    keys["aot_soft_sort_strength"] = SOFT_STRENGTH
                rows[penalty, order, sort] = [replace(cell, beta=beta, keys=keys) for cell in usual]
    return rows


def shares(plan: Plan, results: Results) -> Rows:
    """By (share of positives, method); KTO also with its positives weighted as much as its negatives."""
    rows: Rows = {}
    usual = methods(plan, results)
    for share in plan.positives:
        data = Data(2 * plan.count, positives=share)
        for method in ("aot_unpaired", "kto"):
            rows[share, method] = [replace(cell, data=data) for cell in usual[method,]]
        weight = round((1 - share) / share, 6)
        rows[share, "kto, balanced"] = [
            replace(cell, data=data, keys={BALANCED: weight} if weight != 1 else {}) for cell in usual["kto",]
        ]
    return rows


def flips(plan: Plan, results: Results) -> Rows:
    """By (share of flipped preferences, method)."""
    return {
        (share, method): [replace(cell, data=Data(plan.count, flipped=share)) for cell in cells]
        for share in plan.flips
        for (method,), cells in methods(plan, results).items()
    }


# In the order that they are run in; each needs those before it.
STAGES = (
    grid,
    base,
    methods,
    flips,
    shares,
    margin_search,
    losses,
    sizes,
)
