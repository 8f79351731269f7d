"""The cells of the comparison of settings, ours with others', each as it was chosen.

May import `benchmarks.alignment.cells`, `choices`, `plan`, `preferences`, `results`, `searches`, `settings`,
`tasks`.
"""

from dataclasses import replace

from benchmarks.alignment.cells import Cell
from benchmarks.alignment.choices import Place, chosen
from benchmarks.alignment.plan import CLEAN_AND_NOISY, LONGER, Plan
from benchmarks.alignment.preferences import Data
from benchmarks.alignment.results import Results
from benchmarks.alignment.searches import Rows, over
from benchmarks.alignment.settings import SETTINGS, Setting, balanced_kto
from benchmarks.alignment.tasks import TASKS

FEW = ("aot_unpaired", "aot_unpaired, entropic", "aot_unpaired, anchor", "kto")  # settings; and KTO balanced


def of_setting(plan: Plan, setting: Setting, place: Place, seeds: range) -> list[Cell]:
    """The cells of a setting as it was chosen for the place.

    Raises:
        NotMeasured: it was not.
    """
    answers = plan.count if place.positives is None else 2 * plan.count
    data = Data(answers, place.positives, place.flipped, place.task)
    return [
        replace(cell, data=data, keys=dict(setting.keys), epochs=place.epochs)
        for cell in over(plan, setting.method, chosen(place), seeds)
    ]


def contenders(plan: Plan, results: Results) -> Rows:
    """By (task, share of flipped preferences, setting)."""
    return {
        (task, flipped, name): of_setting(plan, setting, Place(task, name, flipped), plan.main_seeds)
        for task in TASKS
        for flipped in CLEAN_AND_NOISY
        for name, setting in SETTINGS.items()
    }


def contenders_longer(plan: Plan, results: Results) -> Rows:
    """By (task, setting): of more epochs."""
    return {
        (task, name): of_setting(plan, setting, Place(task, name, epochs=LONGER), plan.fresh_seeds)
        for task in TASKS
        for name, setting in SETTINGS.items()
    }


def contenders_few(plan: Plan, results: Results) -> Rows:
    """By (share of positives, setting)."""
    return {
        (share, setting.name): of_setting(
            plan, setting, Place("sorting", setting.name, positives=share), plan.fresh_seeds
        )
        for share in plan.few
        for setting in (*(SETTINGS[name] for name in FEW), balanced_kto(share))
    }
