"""The tables that compare settings, each as it was chosen for the place, as Markdown.

May import `benchmarks.alignment.batched`, `choices`, `comparisons`, `estimates`, `findings`, `plan`,
`results`, `searched`, `tasks`.
"""

import contextlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from benchmarks.alignment import comparisons
from benchmarks.alignment.batched.kinds import CONTENDERS, SHARES
from benchmarks.alignment.batched.search import COUNT, FEW, FEWER, FRESH, LONGER, Condition
from benchmarks.alignment.cells import BASE, Cell
from benchmarks.alignment.choices import Best, Place
from benchmarks.alignment.estimates import estimate
from benchmarks.alignment.findings import Claim, Section, findings, percent, table
from benchmarks.alignment.plan import BALANCED, Plan
from benchmarks.alignment.preferences import Data
from benchmarks.alignment.results import NotMeasured, Results
from benchmarks.alignment.searched import kind_of, read_search
from benchmarks.alignment.tasks import TASKS

DOUBTED, ANCHOR = "aot_unpaired, doubted", "aot_unpaired, anchor"
Question = tuple[str, str, bool]  # ours, theirs, whether the paper says that ours is above
QUESTIONS: tuple[Question, ...] = (
    *((DOUBTED, theirs, False) for theirs in ("dpo", "kto", "apo_zero", ANCHOR)),
    *((ANCHOR, theirs, False) for theirs in ("kto", "dpo")),
    *((ours, "dpo", True) for ours in ("aot", "aot_unpaired")),
)
FEW_QUESTIONS: tuple[Question, ...] = (
    *((ours, BALANCED, False) for ours in (DOUBTED, ANCHOR, "aot_unpaired, entropic", "aot_unpaired")),
    (DOUBTED, ANCHOR, False),
    (BALANCED, "kto", False),
)
LONGER_QUESTIONS: tuple[Question, ...] = (
    *((DOUBTED, theirs, False) for theirs in ("dpo", "ipo", "kto", "apo_zero", ANCHOR)),
    *((ANCHOR, theirs, False) for theirs in ("dpo", "ipo", "kto")),
    *((ours, "dpo", True) for ours in ("aot", "aot_unpaired")),
)
SCORES = {"reward": "reward", "worst tenth": "worst", "malformed": "malformed"}
OF_LENGTH = {"length": "length", "idle words": "idle"}

SEARCHED = "(s)"  # marks a row that the search trained


class Measured(NamedTuple):
    """A setting's scores at a place.

    at: as it was chosen. values: of a score, by seed. by_search: whether the batched search trained it.
    """

    at: Best
    values: Callable[[str], np.ndarray]
    by_search: bool


Rows = Mapping[str, Measured]  # by setting


def words_of(task: str, flipped: float) -> str:
    return f"{task}, {flipped:.0%} flipped" if flipped else f"{task}, clean"


# --- What was measured ------------------------------------------------------------------------------


def of_cells(results: Results, cells: list[Cell]) -> Measured:
    """Trained by axolotl."""
    at = Best(cells[0].beta, cells[0].learning_rate)
    return Measured(at, lambda score: results.values(cells, "test", score), by_search=False)


def of_search(place: Place, seeds: range, at: Best | None = None) -> Measured:
    """Trained by the batched search. at: None where the search chose it.

    Raises:
        NotMeasured: not with all of the seeds.
    """
    search, kind = read_search(), kind_of(place)
    count = COUNT if place.positives is None else 2 * COUNT
    where = Condition(Data(count, place.positives, place.flipped, place.task), place.epochs)
    point = at or search.chosen(kind, where).at
    search.test(kind, where, point, seeds=seeds)
    return Measured(point, lambda score: search.test(kind, where, point, score, seeds), by_search=True)


def compared(plan: Plan, results: Results) -> dict[Place, dict[str, Measured]]:
    """Settings by place; from the search where axolotl has not trained all of a setting's cells."""
    found: dict[Place, dict[str, Measured]] = {}
    for (task, flipped, name), cells in comparisons.contenders(plan, results).items():
        row = of_cells(results, cells)
        if results.missing(cells):
            row = of_search(Place(task, name, flipped), FRESH, row.at)
        found.setdefault(Place(task, "", flipped), {})[name] = row
    return found


def searched(places: Iterable[Place], names: Iterable[str]) -> dict[Place, dict[str, Measured]]:
    """Settings by place, those that the search measured there with fresh seeds.

    Raises:
        NotMeasured: none of them.
    """
    found: dict[Place, dict[str, Measured]] = {}
    for place in places:
        for name in names:
            with contextlib.suppress(NotMeasured):
                row = of_search(replace(place, setting=name), FEWER)
                found.setdefault(place, {})[name] = row
    if not found:
        raise NotMeasured("the search has no fresh seeds there")
    return found


# --- As Markdown ------------------------------------------------------------------------------------


def line(name: str, row: Measured, place: Place) -> list[str]:
    """A setting's scores; its choice is marked where it lies at an edge."""
    marks = read_search().marks(replace(place, setting=name), row.at)
    at = [f"{value:g}{mark}" for value, mark in zip((row.at.beta, row.at.learning_rate), marks, strict=True)]
    return [f"`{name}`{f' {SEARCHED}' if row.by_search else ''}", *at, *_scores(row, place)]


def _scores(row: Measured, place: Place) -> list[str]:
    return [
        *(percent(estimate(row.values(score))) for score in SCORES.values()),
        *(f"{row.values(score).mean():.2f}" for score in _of_length(place).values()),
    ]


def _of_length(place: Place) -> dict[str, str]:
    return OF_LENGTH if TASKS[place.task].lengths_differ else {}


def _words(place: Place) -> str:
    return words_of(place.task, place.flipped)


def claims(rows: Rows, questions: Iterable[Question], where: str) -> list[Claim]:
    """Of the settings that are there."""
    return [
        Claim(
            f"{where}: `{ours}` above `{theirs}`",
            rows[ours].values("reward") - rows[theirs].values("reward"),
            of_paper,
        )
        for ours, theirs, of_paper in questions
        if ours in rows and theirs in rows
    ]


def _section(
    by_place: Mapping[Place, Rows],
    words: Callable[[Place], str],
    questions: Iterable[Question],
    base: Callable[[Place], list[list[str]]] = lambda place: [],
) -> Section:
    """A table for each place. base: lines before those of the settings."""
    shown, asked = [], []
    for place, rows in by_place.items():
        head = ["setting", "`rl_beta`", "learning rate", *SCORES, *_of_length(place)]
        lines = [*base(place), *(line(name, row, place) for name, row in rows.items())]
        shown.append(f"{words(place).capitalize()}:\n\n{table(head, lines)}")
        asked += claims(rows, questions, words(place))
    return Section("\n".join(shown), findings(asked))


def settings(plan: Plan, results: Results) -> Section:
    bases = comparisons.base(plan, results)

    def base(place: Place) -> list[list[str]]:
        return [[BASE, "", "", *_scores(of_cells(results, bases[place.task,]), place)]]

    return _section(compared(plan, results), _words, QUESTIONS, base)


def confirmed(plan: Plan, results: Results) -> Section:
    """What was picked last, on seeds that nothing had seen."""
    rows: dict[Place, dict[str, Measured]] = {}
    for (task, flipped, name), cells in comparisons.confirmed(plan, results).items():
        rows.setdefault(Place(task, "", flipped), {})[name] = of_cells(results, cells)
    return _section(rows, _words, QUESTIONS)


def longer(plan: Plan, results: Results) -> Section:
    rows = searched([Place(task, "", epochs=LONGER) for task in TASKS], CONTENDERS)
    return _section(rows, lambda place: place.task, LONGER_QUESTIONS)


def few(plan: Plan, results: Results) -> Section:
    places = [Place("sorting", "", positives=share) for share in SHARES]
    rows = searched(places, [BALANCED, *FEW])
    return _section(rows, lambda place: f"{place.positives:.0%} positives", FEW_QUESTIONS)
