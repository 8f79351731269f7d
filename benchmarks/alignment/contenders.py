"""The cells of the comparison of settings, ours with others', each as it was chosen.

May import `benchmarks.alignment.cells`, `choices`, `plan`, `preferences`, `results`, `searches`, `settings`.
"""

from collections.abc import Iterable
from dataclasses import replace

from benchmarks.alignment.cells import Cell
from benchmarks.alignment.choices import Place, chosen
from benchmarks.alignment.plan import Plan
from benchmarks.alignment.preferences import Data
from benchmarks.alignment.results import Results
from benchmarks.alignment.searches import Rows, over
from benchmarks.alignment.settings import SETTINGS, Setting

CONFIRMED = ("kto", "aot_unpaired, doubted")  # what was picked last, and what it is not clearly above


def contenders(plan: Plan, results: Results) -> Rows:
    """By (task, share of flipped preferences, setting).

    Raises:
        NotMeasured: a setting was not chosen for a place.
    """
    return _rows(plan, SETTINGS, plan.main_seeds)


def confirmed(plan: Plan, results: Results) -> Rows:
    """The same, of those in `CONFIRMED`, with seeds that were never used before.

    Raises:
        NotMeasured: a setting was not chosen for a place.
    """
    return _rows(plan, CONFIRMED, plan.unseen_seeds)


def _rows(plan: Plan, names: Iterable[str], seeds: range) -> Rows:
    return {
        (task, flipped, name): _cells(plan, SETTINGS[name], Place(task, name, flipped), seeds)
        for task, flipped in plan.places
        for name in names
        if plan.settings is None or name in plan.settings
    }


def _cells(plan: Plan, setting: Setting, place: Place, seeds: range) -> list[Cell]:
    data = Data(plan.count, flipped=place.flipped, task=place.task)
    return [
        replace(cell, data=data, keys=dict(setting.keys))
        for cell in over(plan, setting.method, chosen(place), seeds)
    ]
