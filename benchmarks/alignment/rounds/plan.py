"""Which courses are followed, and what is chosen from them.

May import `benchmarks.alignment.choices` and `course` beside it; NumPy.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from benchmarks.alignment.choices import Place, chosen
from benchmarks.alignment.rounds.course import Course

SCORED = 8192  # answers of a course, over all its rounds
KINDS = ("dpo", "kto", "aot_unpaired", "aot_unpaired, doubted")
OURS = "aot_unpaired, doubted"
SEEDS, FRESH = range(3), range(5, 15)
RATES, LOWER_RATES = (3e-4, 6e-4, 1.2e-3), (1.5e-4, 3e-4, 6e-4)
LATER = (1.0, 0.25)


class Shape(NamedTuple):
    """How so many scored answers are used. options: of `Course`. rates, later: that are tried."""

    options: Mapping[str, Any]
    rates: tuple[float, ...] = RATES
    later: tuple[float, ...] = (1.0,)


SHAPES: dict[str, Shape] = {
    "one offline epoch": Shape({}),
    "two rounds": Shape({"rounds": 2}, later=LATER),
    "three rounds": Shape({"rounds": 3}, later=LATER),
    "four offline epochs": Shape({"epochs": 4}, rates=LOWER_RATES),
}
# Of rounds, with what was best for them without.
VARIANTS: dict[str, Mapping[str, Any]] = {
    "the base model is the reference of all rounds": {"reference": "base"},
    "best and worst of four answers": {"answers": 4},
    "a judge that does not err": {"noise": 0.0},
}

Results = Mapping[Course, list[dict]]  # of each course, what is known after each round


def _courses(kind: str, shape: Shape, task: str, seeds: Iterable[int]) -> list[Course]:
    beta = chosen(Place(task, kind)).beta
    return [
        Course(kind, beta, rate, seed, task, SCORED, later=later, **shape.options)
        for rate in shape.rates
        for later in shape.later
        for seed in seeds
    ]


def search(results: Results, task: str) -> list[Course]:
    return [
        course for shape in SHAPES.values() for kind in KINDS for course in _courses(kind, shape, task, SEEDS)
    ]


def best(results: Results, kind: str, shape: Shape, task: str) -> Course | None:
    """By the mean reward on the validation problems after the last round; None where not all is known."""
    found: dict[Course, list[float]] = {}
    for course in _courses(kind, shape, task, SEEDS):
        if course not in results:
            return None
        reward = results[course][-1]["validation"]["reward"]
        found.setdefault(replace(course, seed=FRESH[0]), []).append(reward)
    return max(found, key=lambda course: np.mean(found[course]))


def measured(results: Results, task: str) -> list[Course]:
    """Each at its best, with fresh seeds."""
    return [
        replace(at, seed=seed)
        for kind in KINDS
        for shape in SHAPES.values()
        if (at := best(results, kind, shape, task))
        for seed in FRESH
    ]


def variants(results: Results, task: str) -> list[Course]:
    """Of two rounds of ours, with fresh seeds."""
    at = best(results, OURS, SHAPES["two rounds"], task)
    return [replace(at, seed=seed, **options) for options in VARIANTS.values() for seed in FRESH if at]


STAGES: dict[str, Callable[[Results, str], list[Course]]] = {
    stage.__name__: stage for stage in (search, measured, variants)
}


def groups(courses: Iterable[Course], size: int) -> Iterable[list[Course]]:
    """Courses that can be followed together, those of one loss beside each other."""
    alike: dict[Course, list[Course]] = {}
    for course in courses:
        common = replace(course, kind="", beta=0.0, learning_rate=0.0, seed=0, later=1.0)
        alike.setdefault(common, []).append(course)
    for some in alike.values():
        for begin in range(0, len(some), size):
            yield some[begin : begin + size]
