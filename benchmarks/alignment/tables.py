"""The tables on the paper's own setting, and what they say of its findings, as Markdown.

A score is the mean over seeds with an interval; methods are compared by their differences seed by seed,
which share data, LoRA's first matrices and sampling noise. May import `benchmarks.alignment.comparisons`,
`estimates`, `findings`, `plan`, `results`; NumPy.
"""

import functools

import numpy as np

from benchmarks.alignment import comparisons
from benchmarks.alignment.cells import BASE, Cell
from benchmarks.alignment.estimates import estimate
from benchmarks.alignment.findings import Claim, Section, findings, in_nats, percent, table
from benchmarks.alignment.plan import (
    METHODS,
    MICRO_BATCHES,
    ORDERS,
    OURS,
    PENALTIES,
    SORTS,
    THEIRS,
    USUAL_LOSS,
    USUAL_SIZE,
    Plan,
)
from benchmarks.alignment.results import Results


def score(results: Results, cells: list[Cell] | None) -> str:
    """The reward; None: of cells that are those beside them."""
    return "the same" if cells is None else percent(estimate(results.values(cells)))


def methods(plan: Plan, results: Results) -> Section:
    rows = {(BASE,): comparisons.base(plan, results)["sorting",], **comparisons.methods(plan, results)}
    lines = []
    for (method,), cells in rows.items():
        of = functools.partial(results.values, cells)
        chosen = cells[0]
        names = ("reward", "worst", "sorted", "malformed")
        lines.append(
            [
                f"`{method}`" if method != BASE else BASE,
                f"{chosen.beta:g}" if method != BASE else "",
                f"{chosen.learning_rate:g}" if method != BASE else "",
                *(percent(estimate(of("test", name))) for name in names),
                f"{of('test', 'kl').mean():.2f}",
                percent(estimate(of("pairs", "accuracy"))) if method != BASE else "",
            ]
        )
    head = ["method", "`rl_beta`", "learning rate", "reward", "worst tenth", "sorted", "malformed"]
    found = {method: results.values(rows[method,]) for method in METHODS}
    claims = [
        Claim(f"`{ours}` above `{theirs}`", found[ours] - found[theirs]) for ours in OURS for theirs in THEIRS
    ]
    return Section(table([*head, "KL, nats", "accuracy on pairs"], lines), findings(claims))


def curves(plan: Plan, results: Results) -> Section:
    rows = comparisons.methods(plan, results)
    levels = (0.06, 0.26, 0.5, 0.74, 0.94)
    numbers = [round(level * 25 - 0.5) for level in levels]
    lines = []
    for method in METHODS:
        cells = rows[method,]
        above = np.mean([np.greater_equal(*_ratios(results, cell)).mean() for cell in cells]).item()
        lines.append(
            [
                f"`{method}`",
                *(f"{value:.2f}" for value in margins(results, cells).mean(axis=0)[numbers]),
                f"{100 * above:.0f}%",
                f"{100 * results.mean(cells, 'pairs', 'violation_rate'):.1f}%",
                f"{results.mean(cells, 'test', 'kl'):.2f}",
            ]
        )
    head = ["method", *(f"{100 * level:.0f}%" for level in levels)]
    alike = {
        key: margins(results, cells).mean(axis=1) for key, cells in comparisons.margins(plan, results).items()
    }
    claims = [
        Claim(f"mean margin of `{ours}` above `{theirs}`'s", alike[ours, ours] - alike[ours, theirs])
        for ours in OURS
        for theirs in THEIRS
    ]
    shown = table([*head, "ratio at least the base's", "rewards fail", "KL, nats"], lines)
    return Section(shown, findings(claims, "nats", in_nats))


def margins(results: Results, cells: list[Cell]) -> np.ndarray:
    """Between the quantiles of chosen and rejected rewards, (cells, levels), in nats."""
    curves = [results.of(cell)["pairs"]["curves"] for cell in cells]
    return np.array([np.subtract(curve["chosen"], curve["rejected"]) for curve in curves])


def _ratios(results: Results, cell: Cell) -> tuple[list[float], list[float]]:
    curves = results.of(cell)["pairs"]["curves"]
    return curves["ratio"], curves["base_ratio"]


def betas(plan: Plan, results: Results) -> Section:
    rows = comparisons.betas(plan, results)
    lines = [
        [f"{beta:g}", *(score(results, rows[method, beta]) for method in METHODS)] for beta in plan.betas
    ]
    extremes = comparisons.beta_extremes(plan, results)
    claims = []
    for method in OURS:
        lowest, larger = extremes[method, "lowest"], extremes[method, "larger"]
        claims.append(
            Claim(
                f"`{method}`: `rl_beta: {lowest[0].beta:g}` above the best larger one, {larger[0].beta:g}",
                results.values(lowest) - results.values(larger),
            )
        )
    return Section(table(["`rl_beta`", *(f"`{m}`" for m in METHODS)], lines), findings(claims))


def scope_name(micro_batch: int | None) -> str:
    if micro_batch is None:
        return "`effective_batch`"
    return f"`micro_batch` of {micro_batch}" + (", DPO's loss" if micro_batch == 1 else "")


def sizes(plan: Plan, results: Results) -> Section:
    rows = comparisons.sizes(plan, results)
    scopes = (None, *MICRO_BATCHES)
    lines = [
        [str(size), *(score(results, rows.get((size, scope))) for scope in scopes)] for size in plan.sizes
    ]
    small, large = plan.sizes[0], max(s for s in plan.sizes if s <= USUAL_SIZE)
    whole = {size: results.values(rows[size, None]) for size in plan.sizes}
    claims = [Claim(f"a batch of {large} above one of {small}", whole[large] - whole[small])]
    if plan.sizes[-1] != large:
        words = f"a batch of {plan.sizes[-1]} above one of {large}"
        claims.append(Claim(words, whole[plan.sizes[-1]] - whole[large]))
    claims += [
        Claim(
            f"batch {size}: sorting it whole above {scope_name(scope)}",
            whole[size] - results.values(rows[size, scope]),
        )
        for size, scope in rows
        if scope is not None
    ]
    return Section(table(["effective batch", *map(scope_name, scopes)], lines), findings(claims))


def losses(plan: Plan, results: Results) -> Section:
    rows = comparisons.losses(plan, results)
    lines = []
    for penalty in PENALTIES:
        for order in ORDERS:
            cells = [rows[penalty, order, sort] for sort in SORTS]
            chosen = cells[0][0]
            lines.append(
                [
                    f"`{penalty}`",
                    f"`{order}`",
                    f"{chosen.beta:g}",
                    f"{chosen.learning_rate:g}",
                    *(score(results, c) for c in cells),
                ]
            )

    def against_usual(penalty: str, order: str, sort: str) -> np.ndarray:
        return results.values(rows[penalty, order, sort]) - results.values(rows[USUAL_LOSS])

    _, first, hard = USUAL_LOSS
    claims = [
        Claim("soft sort above hard sort (logistic)", against_usual("logistic", first, "soft"), False),
        *(
            Claim(f"`{penalty}` above `logistic`", against_usual(penalty, first, hard), False)
            for penalty in PENALTIES[1:]
        ),
        Claim("second order above first (logistic)", against_usual("logistic", "second", hard), False),
    ]
    head = ["`aot_penalty`", "`aot_dominance`", "`rl_beta`", "learning rate", "hard sort", "soft sort"]
    return Section(table(head, lines), findings(claims))


def shares(plan: Plan, results: Results) -> Section:
    rows = comparisons.shares(plan, results)
    names = list(dict.fromkeys(name for _, name in rows))
    lines = [
        [f"{share:.0%}", *(score(results, rows.get((share, name))) for name in names)]
        for share in plan.positives
    ]
    claims = [
        Claim(
            f"{share:.0%} positives: `aot_unpaired` above `{name}`",
            results.values(rows[share, "aot_unpaired"]) - results.values(rows[share, name]),
            of_paper=False,
        )
        for share, name in rows
        if name != "aot_unpaired"
    ]
    return Section(table(["positives", *(f"`{name}`" for name in names)], lines), findings(claims))


def flips(plan: Plan, results: Results) -> Section:
    rows = comparisons.flips(plan, results)
    lines = [
        [f"{share:.0%}", *(score(results, rows[share, method]) for method in METHODS)] for share in plan.flips
    ]
    claims = [
        Claim(
            f"{share:.0%} flipped: `{ours}` above `{theirs}`",
            results.values(rows[share, ours]) - results.values(rows[share, theirs]),
            of_paper=False,
        )
        for share in plan.flips[1:]
        for ours, theirs in (("aot", "dpo"), ("aot", "ipo"), ("aot_unpaired", "dpo"), ("aot_unpaired", "kto"))
    ]
    return Section(table(["flipped", *(f"`{m}`" for m in METHODS)], lines), findings(claims))
