"""The tables that compare settings, each as it was chosen for the place, as Markdown.

May import `benchmarks.alignment.choices`, `comparisons`, `estimates`, `findings`, `plan`, `results`,
`searched`, `searches`, `tasks`.
"""

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from benchmarks.alignment import comparisons
from benchmarks.alignment.cells import BASE, Cell
from benchmarks.alignment.choices import Best, Place
from benchmarks.alignment.estimates import estimate
from benchmarks.alignment.findings import Claim, Section, findings, percent, table
from benchmarks.alignment.plan import BALANCED, LONGER, Plan
from benchmarks.alignment.results import Results
from benchmarks.alignment.searched import read_search
from benchmarks.alignment.searches import Rows
from benchmarks.alignment.tasks import TASKS

DOUBTED, ANCHOR = "aot_unpaired, doubted", "aot_unpaired, anchor"
Question = tuple[str, str, bool]  # ours, theirs, whether the paper says that ours is above
QUESTIONS: tuple[Question, ...] = (
    *((DOUBTED, theirs, False) for theirs in ("dpo", "kto", "apo_zero", ANCHOR)),
    *((ANCHOR, theirs, False) for theirs in ("kto", "dpo")),
    *((ours, "dpo", True) for ours in ("aot", "aot_unpaired")),
    ("aot, entropic", "aot", False),
)
FEW_QUESTIONS: tuple[Question, ...] = (
    *((ours, BALANCED, False) for ours in (DOUBTED, ANCHOR, "aot_unpaired, entropic", "aot_unpaired")),
    (DOUBTED, ANCHOR, False),
    (BALANCED, "kto", False),
)
SCORES = {"reward": "reward", "worst tenth": "worst", "malformed": "malformed"}
OF_LENGTH = {"length": "length", "idle words": "idle"}

Settings = Mapping[str, list[Cell]]  # cells by setting


def words_of(task: str, flipped: float) -> str:
    return f"{task}, {flipped:.0%} flipped" if flipped else f"{task}, clean"


def choice(place: Place, cells: list[Cell]) -> list[str]:
    """`rl_beta` and learning rate, marked."""
    at = Best(cells[0].beta, cells[0].learning_rate)
    return [
        f"{value:g}{mark}"
        for value, mark in zip((at.beta, at.learning_rate), read_search().marks(place, at), strict=True)
    ]


def scores(results: Results, rows: Settings, place: Place) -> str:
    """A line each. place: of some setting there."""
    of_length = OF_LENGTH if TASKS[place.task].lengths_differ else {}
    lines = []
    for name, cells in rows.items():
        of = functools.partial(results.values, cells, "test")
        lines.append(
            [
                *(
                    (BASE, "", "")
                    if name == BASE
                    else (f"`{name}`", *choice(replace(place, setting=name), cells))
                ),
                *(percent(estimate(of(score))) for score in SCORES.values()),
                *(f"{of(score).mean():.2f}" for score in of_length.values()),
                f"{of('kl').mean():.2f}",
            ]
        )
    return table(["setting", "`rl_beta`", "learning rate", *SCORES, *of_length, "KL, nats"], lines)


def claims(results: Results, rows: Settings, questions: Iterable[Question], where: str) -> list[Claim]:
    """Of the settings that are there."""
    return [
        Claim(
            f"{where}: `{ours}` above `{theirs}`",
            results.values(rows[ours]) - results.values(rows[theirs]),
            of_paper,
        )
        for ours, theirs, of_paper in questions
        if ours in rows and theirs in rows
    ]


def _section(
    results: Results,
    by_place: Mapping[Place, Settings],
    words: Callable[[Place], str],
    questions: Iterable[Question],
) -> Section:
    """A table for each place."""
    shown = [
        f"{words(place).capitalize()}:\n\n{scores(results, rows, place)}" for place, rows in by_place.items()
    ]
    asked = [
        claim for place, rows in by_place.items() for claim in claims(results, rows, questions, words(place))
    ]
    return Section("\n".join(shown), findings(asked))


def _by_place(rows: Rows, place_of: Callable[..., Place]) -> dict[Place, dict[str, list[Cell]]]:
    """place_of: of what stands before the setting's name."""
    found: dict[Place, dict[str, list[Cell]]] = {}
    for (*key, name), cells in rows.items():
        found.setdefault(place_of(*key), {})[name] = cells
    return found


def settings(plan: Plan, results: Results) -> Section:
    base = comparisons.base(plan, results)
    places = _by_place(comparisons.contenders(plan, results), lambda task, share: Place(task, "", share))
    with_base = {place: {BASE: base[place.task,], **rows} for place, rows in places.items()}
    return _section(results, with_base, lambda place: words_of(place.task, place.flipped), QUESTIONS)


def longer(plan: Plan, results: Results) -> Section:
    places = _by_place(
        comparisons.contenders_longer(plan, results), lambda task: Place(task, "", epochs=LONGER)
    )
    return _section(results, places, lambda place: place.task, QUESTIONS)


def few(plan: Plan, results: Results) -> Section:
    places = _by_place(
        comparisons.contenders_few(plan, results), lambda share: Place("sorting", "", positives=share)
    )
    return _section(results, places, lambda place: f"{place.positives:.0%} positives", FEW_QUESTIONS)
