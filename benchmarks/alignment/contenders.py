"""The cells of the comparison of settings, ours with others', each as it was chosen.

May import `benchmarks.alignment.cells`, `choices`, `plan`, `preferences`, `results`, `searches`, `settings`.
"""

from dataclasses import replace

from benchmarks.alignment.cells import Cell
from benchmarks.alignment.choices import Place, chosen
from benchmarks.alignment.plan import Plan
from benchmarks.alignment.preferences import Data
from benchmarks.alignment.results import Results
from benchmarks.alignment.searches import Rows, over
from benchmarks.alignment.settings import SETTINGS, Setting


def contenders(plan: Plan, results: Results) -> Rows:
    """By (task, share of flipped preferences, setting).

    Raises:
        NotMeasured: a setting was not chosen for a place.
    """
    return {
        (task, flipped, setting.name): _cells(plan, setting, Place(task, setting.name, flipped))
        for task, flipped in plan.places
        for setting in SETTINGS.values()
        if plan.settings is None or setting.name in plan.settings
    }


def _cells(plan: Plan, setting: Setting, place: Place) -> list[Cell]:
    data = Data(plan.count, flipped=place.flipped, task=place.task)
    return [
        replace(cell, data=data, keys=dict(setting.keys))
        for cell in over(plan, setting.method, chosen(place), plan.main_seeds)
    ]
