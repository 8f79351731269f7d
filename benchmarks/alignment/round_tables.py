"""The tables of rounds on a model's own answers, as Markdown.

May import `benchmarks.alignment.estimates`, `findings`, `plan`, `results`, `rounds`; NumPy.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from benchmarks.alignment.estimates import estimate
from benchmarks.alignment.findings import Claim, Section, findings, percent, table
from benchmarks.alignment.plan import Plan
from benchmarks.alignment.results import NotMeasured, Results
from benchmarks.alignment.rounds.course import Course
from benchmarks.alignment.rounds.plan import FRESH, KINDS, OURS, SHAPES, VARIANTS, best
from benchmarks.alignment.rounds.records import PATH, read

TASK = "sorting"
OFFLINE, TWO = "one offline epoch", "two rounds"
SCORES = ("reward", "worst", "malformed")

Known = Mapping[Course, list[dict]]
Row = tuple[Course, list[list[dict]]]  # at its best, and by fresh seed what is known after each round


def _fresh(known: Known, at: Course | None) -> Row | None:
    """None where not all seeds are known."""
    courses = [replace(at, seed=seed) for seed in FRESH] if at else []
    if not courses or any(course not in known for course in courses):
        return None
    return at, [known[course] for course in courses]


def _last(row: Row, score: str = "reward") -> np.ndarray:
    """On the test problems after the last round, by seed."""
    return np.array([rounds[-1]["test"][score] for rounds in row[1]])


def measured(known: Known) -> dict[tuple[str, str], Row]:
    """By (shape, kind), with fresh seeds."""
    rows = {
        (name, kind): _fresh(known, best(known, kind, shape, TASK))
        for name, shape in SHAPES.items()
        for kind in KINDS
    }
    return {key: row for key, row in rows.items() if row}


def rounds(plan: Plan, results: Results) -> Section:
    known = read()
    rows, varied = measured(known), _varied(known)
    if not rows:
        raise NotMeasured(f"{PATH.name} has no courses with fresh seeds")
    head = ["answers", "loss", "learning rate", "reward", "worst tenth", "malformed", "after each round"]
    lines = [[name, f"`{kind}`", *_line(row)] for (name, kind), row in rows.items()]
    lines += [[f"{TWO}: {words}", f"`{OURS}`", *_line(row)] for words, row in varied.items()]
    return Section(table(head, lines), findings(_claims(rows, varied)))


def _varied(known: Known) -> dict[str, Row]:
    at = best(known, OURS, SHAPES[TWO], TASK)
    found = {words: _fresh(known, at and replace(at, **options)) for words, options in VARIANTS.items()}
    return {words: row for words, row in found.items() if row}


def _line(row: Row) -> list[str]:
    at, seeds = row
    rates = f"{at.learning_rate:g}"
    if at.rounds > 1:
        rates += f", then {at.learning_rate * at.later:g}"
    courses = np.array([[round["test"]["reward"] for round in rounds] for rounds in seeds])
    each = ", ".join(f"{100 * mean:.1f}" for mean in courses.mean(axis=0)) if at.rounds > 1 else ""
    return [rates, *(percent(estimate(_last(row, score))) for score in SCORES), each]


def _claims(rows: Mapping[tuple[str, str], Row], varied: Mapping[str, Row]) -> list[Claim]:
    """Of what is there."""
    asked = [
        *(((name, kind), (OFFLINE, kind)) for name in SHAPES if name != OFFLINE for kind in KINDS),
        *(((name, OURS), (name, kind)) for name in SHAPES for kind in KINDS if kind != OURS),
    ]
    claims = [
        Claim(f"{_words(ours)} above {_words(theirs)}", _last(rows[ours]) - _last(rows[theirs]), False)
        for ours, theirs in asked
        if ours in rows and theirs in rows
    ]
    usual = rows.get((TWO, OURS))
    claims += [
        Claim(f"two rounds, `{OURS}`: {words} above the usual", _last(row) - _last(usual), False)
        for words, row in varied.items()
        if usual
    ]
    return claims


def _words(key: tuple[str, str]) -> str:
    return f"{key[0]} of `{key[1]}`"
