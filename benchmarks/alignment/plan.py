"""What is varied, and how far: in full, and in small.

Imports `benchmarks.alignment.base_model` and `tasks`.
"""

import math
from dataclasses import dataclass

from benchmarks.alignment.base_model import BASE_STEPS
from benchmarks.alignment.tasks import TASKS
from benchmarks.alignment.tasks.task import HELD_OUT, PARTS

METHODS = ("dpo", "ipo", "kto", "aot", "aot_unpaired")
OURS, THEIRS = ("aot", "aot_unpaired"), ("dpo", "kto", "ipo")
# What results.jsonl holds; what is added to `axolotl_aot.dominance` joins with a new run.
PENALTIES = ("logistic", "squared_hinge", "least_squares")
ORDERS = ("first", "second")
SORTS = ("hard", "soft")
USUAL_LOSS = ("logistic", "first", "hard")
# Leaves gaps of half a nat, so that the tails pool. At 0.1 it leaves 10 nats and changes nothing here;
# at 10 margins as wide as a trained model's all pool into their mean.
SOFT_STRENGTH = 2.0
CLEAN_AND_NOISY = (0.0, 0.2)  # shares of flipped preferences that settings are compared at
BALANCED = "kto, balanced"
NOT_STRATIFIED = "aot_unpaired, not stratified"
MICRO_BATCHES = (1, 2)  # that are sorted on their own; one pair alone leaves nothing to sort
USUAL_SIZE = 64  # pairs of an optimizer step; twice as many answers, so that the work is the same
LARGEST_MICRO_BATCH = 128


@dataclass(frozen=True)
class Plan:
    """How large each part is.

    scored: problems of a part that answers are sampled for. seeds: of the grid. search_seeds: of the smaller
    searches. main_seeds: of the table of methods, and its first ones, fresh_seeds, of all that is compared
    elsewhere; none that a choice was made with, which would flatter it. unseen_seeds: of what was picked when
    results with main_seeds were known.
    factors: of learning rates, to refine the grid's best; search_factors: to search with.
    places: tasks and shares of flipped preferences that they are compared at. settings: which of them, by
    name; None for all.
    """

    count: int
    base_steps: int
    scored: int
    seeds: range
    search_seeds: range
    fresh_seeds: range
    main_seeds: range
    unseen_seeds: range
    betas: tuple[float, ...]
    learning_rates: tuple[float, ...]
    factors: tuple[float, ...]
    search_betas: tuple[float, ...]
    search_rates: tuple[float, ...]
    search_factors: tuple[float, ...]
    sizes: tuple[int, ...]
    positives: tuple[float, ...]
    flips: tuple[float, ...]
    places: tuple[tuple[str, float], ...]
    settings: tuple[str, ...] | None = None


FULL = Plan(
    count=2048,
    base_steps=BASE_STEPS,
    scored=HELD_OUT // len(PARTS),
    seeds=range(5),
    search_seeds=range(3),
    fresh_seeds=range(5, 10),
    main_seeds=range(5, 15),
    unseen_seeds=range(25, 35),
    betas=(0.01, 0.1, 0.3, 1.0, 3.0, 10.0),
    learning_rates=(3e-4, 6e-4, 1.2e-3, 2.4e-3),
    factors=(math.sqrt(0.5), math.sqrt(2)),
    search_betas=(0.3, 1.0, 3.0, 10.0),
    search_rates=(3e-4, 6e-4, 1.2e-3),
    search_factors=(0.25, 0.5, 1.0, 2.0),
    sizes=(2, 4, 16, 64, 256),
    positives=(0.5, 0.2, 0.05, 0.01),
    flips=(0.0, 0.1, 0.2, 0.4),
    places=tuple((task, flipped) for task in TASKS for flipped in CLEAN_AND_NOISY),
)
SMALL = Plan(
    count=128,
    base_steps=30,
    scored=128,
    seeds=range(1, 2),  # the same ones for all: fewer cells, and its numbers mean nothing anyway
    search_seeds=range(1, 2),
    fresh_seeds=range(1, 2),
    main_seeds=range(1, 2),
    unseen_seeds=range(1, 2),
    betas=(1.0,),
    learning_rates=(1e-3,),
    factors=(),
    search_betas=(1.0,),
    search_rates=(1e-3,),
    search_factors=(1.0,),
    sizes=(8, 16),
    positives=(0.05,),
    flips=(0.0, 0.2),
    places=(("covering", 0.0),),
    settings=("dpo", "kto", "aot_unpaired, anchor"),
)
