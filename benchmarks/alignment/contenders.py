"""The cells of the comparison of settings, ours with others', each as it was chosen.

May import `benchmarks.alignment.cells`, `choices`, `plan`, `preferences`, `results`, `searches`, `settings`.
"""

from collections.abc import Iterable
from dataclasses import replace

from benchmarks.alignment.cells import Cell
from benchmarks.alignment.choices import Place, chosen
from benchmarks.alignment.plan import LONGER, Plan
from benchmarks.alignment.preferences import Data
from benchmarks.alignment.results import Results
from benchmarks.alignment.searches import Rows, over
from benchmarks.alignment.settings import SETTINGS, Setting, balanced_kto

# Left out: `aot, entropic`, which fails with one epoch already, and the anchor for pairs, which lies beside
# that for answers there.
LONGER_SETTINGS = (
    "dpo",
    "ipo",
    "kto",
    "apo_zero",
    "aot",
    "aot_unpaired",
    "aot_unpaired, entropic",
    "aot_unpaired, anchor",
    "aot_unpaired, doubted",
)
FEW_SETTINGS = (
    "kto",
    "aot_unpaired",
    "aot_unpaired, entropic",
    "aot_unpaired, anchor",
    "aot_unpaired, doubted",
)


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


def settings_of(plan: Plan, names: Iterable[str]) -> list[Setting]:
    """Those of the names that the plan has."""
    return [SETTINGS[name] for name in names if plan.settings is None or name in plan.settings]


def contenders(plan: Plan, results: Results) -> Rows:
    """By (task, share of flipped preferences, setting)."""
    return {
        (task, flipped, setting.name): of_setting(
            plan, setting, Place(task, setting.name, flipped), plan.main_seeds
        )
        for task, flipped in plan.places
        for setting in settings_of(plan, SETTINGS)
    }


def contenders_longer(plan: Plan, results: Results) -> Rows:
    """By (task, setting): of more epochs."""
    return {
        (task, setting.name): of_setting(
            plan, setting, Place(task, setting.name, epochs=LONGER), plan.fresh_seeds
        )
        for task in dict.fromkeys(task for task, _ in plan.places)
        for setting in settings_of(plan, LONGER_SETTINGS)
    }


def contenders_few(plan: Plan, results: Results) -> Rows:
    """By (share of positives, setting)."""
    return {
        (share, setting.name): of_setting(
            plan, setting, Place("sorting", setting.name, positives=share), plan.fresh_seeds
        )
        for share in plan.few
        for setting in (balanced_kto(share), *settings_of(plan, FEW_SETTINGS))
    }
