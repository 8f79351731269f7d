"""The tables of what was trained by the batched search, as Markdown.

May import `benchmarks.alignment.batched`, `comparisons`, `estimates`, `findings`, `plan`, `results`,
`searched`, `setting_tables`; NumPy.
"""

import contextlib
import math
from typing import NamedTuple

import numpy as np

from benchmarks.alignment import comparisons
from benchmarks.alignment.batched.kinds import CONTENDERS, VARIANTS
from benchmarks.alignment.batched.search import COUNT, Condition, conditions
from benchmarks.alignment.choices import Best
from benchmarks.alignment.estimates import estimate
from benchmarks.alignment.findings import Section, in_points, table
from benchmarks.alignment.plan import Plan
from benchmarks.alignment.preferences import Data
from benchmarks.alignment.results import NotMeasured, Results
from benchmarks.alignment.searched import PATH, Chosen, Curve, Searched, read_search
from benchmarks.alignment.setting_tables import ANCHOR, DOUBTED, words_of

NEAR = 0.02  # of a best reward
REFERENCES = ("kto", "apo_zero", "aot_unpaired", "aot_unpaired, entropic", ANCHOR, DOUBTED)


def condition(task: str, flipped: float) -> Condition:
    return Condition(Data(COUNT, flipped=flipped, task=task))


def name_of(where: Condition) -> str:
    return words_of(where.data.task, where.data.flipped)


# --- Agreement --------------------------------------------------------------------------------------


def agreement(plan: Plan, results: Results) -> Section:
    """The search's mean rewards on the test problems, axolotl's, and what they differ by; in percent."""
    search = read_search()
    shown: dict[str, dict[tuple[str, float], str]] = {}
    differences, clear = [], 0
    for (task, flipped, name), cells in comparisons.contenders(plan, results).items():
        if results.missing(cells):
            continue
        at = Best(cells[0].beta, cells[0].learning_rate)
        with contextlib.suppress(NotMeasured):
            batched = 100 * search.test(name, condition(task, flipped), at)
            axolotl = 100 * results.values(cells)
            difference = batched.mean() - axolotl.mean()
            differences.append(difference)
            clear += abs(difference) > 2 * math.hypot(_error(batched), _error(axolotl))
            text = f"{batched.mean():.1f} / {axolotl.mean():.1f} ({difference:+.1f})"
            shown.setdefault(name, {})[task, flipped] = text
    if not differences:
        raise NotMeasured(f"{PATH.name} has none of these points")
    summary = (
        f"Over these {len(differences)} points the search's mean lies {np.mean(differences):+.1f} from "
        f"axolotl's on average, {np.mean(np.abs(differences)):.1f} where the sign is left out, "
        f"{max(differences, key=abs):+.1f} at most; {clear} of the differences exceed twice their standard "
        "error.\n"
    )
    head = ["setting", *(words_of(*place) for place in plan.places)]
    lines = [[f"`{name}`", *(row.get(place, "") for place in plan.places)] for name, row in shown.items()]
    return Section(table(head, lines), summary)


def _error(values: np.ndarray) -> float:
    """The standard error of the mean; of one value there is none."""
    return values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.inf


# --- Learning rates ---------------------------------------------------------------------------------


class Width(NamedTuple):
    """The ratio of the highest to the lowest learning rate around the best that is good enough.

    open: it ends where what was measured ends, at one side or both, so that it is at least this.
    """

    ratio: float
    open: bool

    def __str__(self) -> str:
        return f"{'≥ ' if self.open else ''}{self.ratio:.1f}"


def width(curve: Curve, level: float) -> Width | None:
    """Of the mean reward, linear between measured rates on a logarithmic axis.

    None: it is below the level everywhere.
    """
    means = curve.rewards.mean(axis=1)
    logs = np.log(curve.rates)
    top = int(means.argmax())
    if means[top] < level:
        return None

    def end(step: int) -> tuple[float, bool]:
        place = top
        while 0 <= place + step < len(means):
            after = place + step
            if means[after] < level:
                part = (means[place] - level) / (means[place] - means[after])
                return logs[place] + part * (logs[after] - logs[place]), False
            place = after
        return logs[place], True

    (low, low_open), (high, high_open) = end(-1), end(1)
    return Width(math.exp(high - low), low_open or high_open)


def curves(search: Searched, where: Condition) -> dict[str, Curve]:
    """Of the settings that have one."""
    found = {}
    for name in CONTENDERS:
        with contextlib.suppress(NotMeasured):
            found[name] = search.curve(name, where)
    return found


def rates(plan: Plan, results: Results) -> Section:
    """Within `NEAR` of a setting's own best, and of the best of all."""
    search = read_search()
    by_place = {where: curves(search, where) for where in conditions()}
    lines = []
    for name in CONTENDERS:
        line = [f"`{name}`", *(_widths(found, name) for found in by_place.values())]
        if any(line[1:]):
            lines.append(line)
    if not lines:
        raise NotMeasured(f"{PATH.name} has no learning rates with fresh seeds")
    return Section(table(["setting", *map(name_of, by_place)], lines), "")


def _widths(found: dict[str, Curve], name: str) -> str:
    if name not in found:
        return ""
    tops = {its: curve.rewards.mean(axis=1).max() for its, curve in found.items()}
    widths = [width(found[name], top - NEAR) for top in (tops[name], max(tops.values()))]
    return " / ".join(str(its or "none") for its in widths)


# --- What was tried besides -------------------------------------------------------------------------


def variants(plan: Plan, results: Results) -> Section:
    """Means on the validation problems, and differences on the test problems for those with fresh seeds."""
    search = read_search()
    tried = {(key[0], Condition(*key[1:3])) for key in search.tried}
    places = [where for where in conditions() if any((kind, where) in tried for kind in VARIANTS)]
    if not places:
        raise NotMeasured(f"{PATH.name} has no variants")
    ordered = sorted(VARIANTS, key=lambda kind: kind.split(",")[0])
    lines = []
    for kind in (*REFERENCES, *ordered):
        line = [f"`{kind}`" if kind in REFERENCES else kind]
        for where in places:
            line.append(_chosen(search, kind, where) if (kind, where) in tried else "")
        lines.append(line)
    shown = table(["loss", *map(name_of, places)], lines)
    return Section(shown, _fresh(search, [DOUBTED, *ordered], places))


def _chosen(search: Searched, kind: str, where: Condition) -> str:
    return _percent(search.chosen(kind, where))


def _percent(found: Chosen) -> str:
    return f"{100 * found.mean:.1f} ({found.seeds})"


def _fresh(search: Searched, kinds: list[str], places: list[Condition]) -> str:
    """Differences to KTO and to the anchor, each at its best."""
    against = ("kto", ANCHOR)
    best = {
        (kind, where): search.test(kind, where, search.chosen(kind, where).at)
        for kind in against
        for where in places
    }
    lines = []
    for kind in kinds:
        line = []
        for where in places:
            try:
                values = search.test(kind, where, search.chosen(kind, where).at)
            except NotMeasured:
                line += [""] * len(against)
            else:
                line += [in_points(estimate(values - best[other, where])) for other in against]
        if any(line):
            lines.append([f"`{kind}`" if kind in REFERENCES else kind, *line])
    head = ["loss", *(f"{name_of(where)}: above `{other}`" for where in places for other in against)]
    return table(head, lines)
