"""The cells of each table, and the order in which all are run.

May import `benchmarks.alignment.cells`, `contenders`, `plan`, `preferences`, `results`, `searches`,
`settings`, `tasks`.
"""

from dataclasses import replace
from typing import Any

from benchmarks.alignment.cells import BASE, Cell
from benchmarks.alignment.contenders import confirmed, contenders
from benchmarks.alignment.plan import (
    BALANCED,
    METHODS,
    NOT_STRATIFIED,
    ORDERS,
    OURS,
    PENALTIES,
    SORTS,
    THEIRS,
    USUAL_LOSS,
    Plan,
)
from benchmarks.alignment.preferences import Data
from benchmarks.alignment.results import Results
from benchmarks.alignment.searches import (
    Rows,
    at_best,
    best,
    best_key,
    best_of,
    best_on_grid,
    finalists,
    grid,
    loss_points,
    loss_search,
    of_size,
    over,
    refined,
    scopes,
    size_finalists,
    size_search,
    with_loss,
)
from benchmarks.alignment.settings import balanced_kto
from benchmarks.alignment.tasks import TASKS


def methods(plan: Plan, results: Results) -> Rows:
    """By (method,): each at its best."""
    return {(method,): at_best(plan, results, method, plan.main_seeds) for method in METHODS}


def base(plan: Plan, results: Results) -> Rows:
    """By (task,): the model before training, its answers sampled with each seed."""
    return {
        (task,): [Cell(BASE, 0.0, 0.0, seed, Data(0, task=task), 1, 1) for seed in plan.main_seeds]
        for task in TASKS
    }


def margins(plan: Plan, results: Results) -> Rows:
    """By (ours, method): every method where one of ours is best on the grid; on fresh seeds."""
    rows: Rows = {}
    for ours in OURS:
        found = best_on_grid(plan, results, ours)
        for method in (ours, *THEIRS):
            rows[ours, method] = over(plan, method, found, plan.fresh_seeds)
    return rows


def betas(plan: Plan, results: Results) -> Rows:
    """By (method, beta): at the best learning rate of each, refined; on the grid's seeds."""
    rows: Rows = {}
    for method in METHODS:
        for beta in plan.betas:
            rows[method, beta] = over(plan, method, best(plan, results, method, [beta]), plan.seeds)
    return rows


def beta_extremes(plan: Plan, results: Results) -> Rows:
    """By (method of ours, "lowest" or "larger"): the lowest beta, the best of the others; on fresh seeds."""
    rows: Rows = {}
    for method in OURS:
        for name, some in (("lowest", plan.betas[:1]), ("larger", plan.betas[1:] or plan.betas)):
            found = best(plan, results, method, some)
            rows[method, name] = over(plan, method, found, plan.fresh_seeds)
    return rows


def sizes(plan: Plan, results: Results) -> Rows:
    """By (size, micro-batch that is sorted, None for all of it): each at its best learning rate."""
    rows: Rows = {}
    for size, micro in scopes(plan):
        found = best_key(results, finalists(plan, results, size, micro))
        rows[size, micro] = of_size(plan, results, size, micro, found, plan.fresh_seeds)
    return rows


def losses(plan: Plan, results: Results) -> Rows:
    """By (penalty, order, sort); the soft sort where the hard one is best."""
    rows: Rows = {}
    for penalty in PENALTIES:
        for order in ORDERS:
            if (penalty, order) == USUAL_LOSS[:2]:
                found = best(plan, results, "aot")
            else:
                found = best_of(results, loss_points(plan, penalty, order))
            for sort in SORTS:
                rows[penalty, order, sort] = with_loss(plan, (penalty, order, sort), found, plan.fresh_seeds)
    return rows


def shares(plan: Plan, results: Results) -> Rows:
    """By (share of positives, variant); where the shares are equal, KTO balanced is KTO."""
    rows: Rows = {}
    usual = {method: at_best(plan, results, method, plan.fresh_seeds) for method in ("aot_unpaired", "kto")}
    for share in plan.positives:
        variants: dict[str, tuple[str, dict[str, Any]]] = {
            "aot_unpaired": ("aot_unpaired", {}),
            NOT_STRATIFIED: ("aot_unpaired", {"aot_stratify": False}),
            "kto": ("kto", {}),
            BALANCED: ("kto", dict(balanced_kto(share).keys)),
        }
        if share == 0.5:
            del variants[BALANCED]
        for name, (method, keys) in variants.items():
            data = Data(2 * plan.count, positives=share)
            rows[share, name] = [replace(cell, data=data, keys=keys) for cell in usual[method]]
    return rows


def flips(plan: Plan, results: Results) -> Rows:
    """By (share of flipped preferences, method)."""
    return {
        (share, method): [
            replace(cell, data=Data(plan.count, flipped=share))
            for cell in at_best(plan, results, method, plan.fresh_seeds)
        ]
        for share in plan.flips
        for method in METHODS
    }


# In the order that they are run in; each needs those before it.
STAGES = (
    base,
    contenders,
    confirmed,
    grid,
    refined,
    methods,
    margins,
    betas,
    beta_extremes,
    shares,
    size_search,
    size_finalists,
    sizes,
    flips,
    loss_search,
    losses,
)
