"""The tables, and what they say of the paper's findings, as Markdown.

A score is the mean over seeds with a 95% percentile bootstrap interval over the seeds (SciPy); methods are
compared by their differences seed by seed, which share data and sampling noise. May import
`benchmarks.alignment.plan`, `results`; NumPy and SciPy.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.stats import bootstrap

from benchmarks.alignment import plan as plans
from benchmarks.alignment.cells import BASE, Cell
from benchmarks.alignment.plan import METHODS, Plan
from benchmarks.alignment.results import Results

RESAMPLES = 2000


class Estimate(NamedTuple):
    """A mean over seeds, its interval, and how many of the values are above 0."""

    mean: float
    low: float
    high: float
    above: int
    count: int

    @property
    def sign(self) -> int:
        """1 or -1 where the interval leaves 0 out, else 0."""
        return int(self.low > 0) - int(self.high < 0)


def estimate(values: np.ndarray) -> Estimate:
    """Of values by seed, shape (n,)."""
    low = high = values.mean()
    if np.ptp(values):
        found = bootstrap(
            (values,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=np.random.default_rng(0)
        )
        low, high = found.confidence_interval
    return Estimate(values.mean().item(), float(low), float(high), int((values > 0).sum()), len(values))


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def percent(found: Estimate, signed: bool = False) -> str:
    """A share, or a difference of shares, in percent, with its interval."""
    form = "{:+.1f}" if signed else "{:.1f}"
    mean, low, high = (form.format(100 * value) for value in found[:3])
    return f"{mean} [{low}, {high}]"


def in_points(found: Estimate) -> str:
    return percent(found, signed=True)


def in_nats(found: Estimate) -> str:
    return f"{found.mean:+.2f} [{found.low:+.2f}, {found.high:+.2f}]"


# --- Findings ---------------------------------------------------------------------------------------


class Claim(NamedTuple):
    """A difference that should be above 0 if a finding holds here. in_paper: whether it is the paper's."""

    words: str
    difference: np.ndarray
    in_paper: bool = True


OUTCOMES = {
    (1, True): "**repeated**",
    (0, True): "not clear either way",
    (-1, True): "**the opposite**",
    (1, False): "yes",
    (0, False): "not clear either way",
    (-1, False): "no: the opposite",
}


def findings(
    claims: list[Claim],
    unit: str = "reward, points",
    shown: Callable[[Estimate], str] = in_points,
) -> str:
    rows = []
    for claim in claims:
        found = estimate(claim.difference)
        rows.append(
            [
                claim.words if claim.in_paper else f"{claim.words} (not in the paper)",
                shown(found),
                f"{found.above} of {found.count}",
                OUTCOMES[found.sign, claim.in_paper],
            ]
        )
    return table(["finding", f"difference in {unit}", "seeds above 0", "here"], rows)


# --- Each table -------------------------------------------------------------------------------------


def methods(plan: Plan, results: Results) -> str:
    rows = {**plans.base(plan, results), **plans.methods(plan, results)}
    lines = []
    for (method,), cells in rows.items():
        of = functools.partial(results.values, cells)
        chosen = cells[0]
        lines.append(
            [
                f"`{method}`" if method != BASE else BASE,
                f"{chosen.beta:g}" if method != BASE else "",
                f"{chosen.learning_rate:g}" if method != BASE else "",
                *(
                    percent(estimate(of("test", score)))
                    for score in ("reward", "worst", "sorted", "malformed")
                ),
                f"{of('test', 'kl').mean():.2f}",
                percent(estimate(of("pairs", "accuracy"))),
            ]
        )
    head = ["method", "`rl_beta`", "learning rate", "reward", "worst tenth", "sorted", "malformed"]
    best = {method: results.values(rows[method,]) for method in METHODS}
    claims = [
        Claim(f"`{ours}` above `{theirs}`", best[ours] - best[theirs])
        for ours in ("aot", "aot_unpaired")
        for theirs in ("dpo", "kto", "ipo")
    ]
    return table([*head, "KL, nats", "accuracy on pairs"], lines) + "\n" + findings(claims)


def curves(plan: Plan, results: Results) -> str:
    rows = plans.methods(plan, results)
    found = {method: margins(results, rows[method,]) for method in METHODS}
    levels = (0.06, 0.26, 0.5, 0.74, 0.94)
    numbers = [round(level * 25 - 0.5) for level in levels]
    lines = []
    for method in METHODS:
        shown = [f"{found[method][:, i].mean():.2f}" for i in numbers]
        above = [
            np.mean([np.greater_equal(*_ratios(results, cell)).mean() for cell in rows[method,]]).item(),
            results.mean(rows[method,], "pairs", "violation_rate"),
        ]
        lines.append([f"`{method}`", *shown, *(f"{100 * share:.0f}%" for share in above)])
    head = ["method", *(f"{100 * level:.0f}%" for level in levels)]
    note = (
        "Margin in nats between the quantiles of chosen and rejected rewards, at levels of the quantiles; at "
        "what share of the quantiles the policy's log-likelihood ratio of chosen to rejected is at least the "
        "base model's; at what share chosen rewards lie below rejected ones.\n\n"
    )
    everywhere = {m: found[m].mean(axis=1) for m in METHODS}
    claims = [
        Claim(f"mean margin of `{ours}` above `{theirs}`'s", everywhere[ours] - everywhere[theirs])
        for ours in ("aot", "aot_unpaired")
        for theirs in ("dpo", "kto", "ipo")
    ]
    return (
        note
        + table([*head, "ratio at least the base's", "rewards fail"], lines)
        + "\n"
        + findings(claims, "nats", in_nats)
    )


def margins(results: Results, cells: list[Cell]) -> np.ndarray:
    """Between the quantiles of chosen and rejected rewards, (cells, levels), in nats."""
    curves = [results.of(cell)["pairs"]["curves"] for cell in cells]
    return np.array([np.subtract(curve["chosen"], curve["rejected"]) for curve in curves])


def _ratios(results: Results, cell: Cell) -> tuple[list[float], list[float]]:
    curves = results.of(cell)["pairs"]["curves"]
    return curves["ratio"], curves["base_ratio"]


def betas(plan: Plan, results: Results) -> str:
    rows = plans.betas(plan, results)
    lines = [
        [f"{beta:g}", *(percent(estimate(results.values(rows[method, beta]))) for method in METHODS)]
        for beta in plan.betas
    ]
    low = plan.betas[0]
    claims = []
    for method in ("aot", "aot_unpaired"):
        other = max(plan.betas[1:] or plan.betas, key=lambda b: results.mean(rows[method, b], "validation"))
        difference = results.values(rows[method, low]) - results.values(rows[method, other])
        claims.append(
            Claim(f"`{method}`: `rl_beta: {low:g}` above the best larger one, {other:g}", difference)
        )
    return table(["`rl_beta`", *(f"`{m}`" for m in METHODS)], lines) + "\n" + findings(claims)


def sizes(plan: Plan, results: Results) -> str:
    rows = plans.sizes(plan, results)
    scopes = list(dict.fromkeys(scope for _, scope in rows))
    lines = [
        [str(size), *(percent(estimate(results.values(rows[size, scope]))) for scope in scopes)]
        for size in plan.sizes
    ]
    small, large = plan.sizes[0], max(s for s in plan.sizes if s <= plans.USUAL_SIZE)
    whole = {size: results.values(rows[size, "effective_batch"]) for size in plan.sizes}
    claims = [Claim(f"a batch of {large} above one of {small}", whole[large] - whole[small])]
    if plan.sizes[-1] != large:
        claims.append(
            Claim(f"a batch of {plan.sizes[-1]} above one of {large}", whole[plan.sizes[-1]] - whole[large])
        )
    claims += [
        Claim(
            f"batch {size}: sorting it whole above {scope}", whole[size] - results.values(rows[size, scope])
        )
        for size in plan.sizes
        for scope in scopes[1:]
        if str(size) != scope.split()[-1]  # that would be the same
    ]
    return table(["effective batch", *scopes], lines) + "\n" + findings(claims)


def losses(plan: Plan, results: Results) -> str:
    rows = plans.losses(plan, results)
    lines = []
    for penalty in plans.PENALTIES:
        for order in plans.ORDERS:
            cells = [rows[penalty, order, sort] for sort in plans.SORTS]
            shown = [percent(estimate(results.values(c))) for c in cells]
            lines.append([f"`{penalty}`", f"{cells[0][0].beta:g}", f"`{order}`", *shown])
    usual = results.values(rows["logistic", "first", "hard"])
    claims = [
        Claim(
            "soft sort above hard sort (logistic)", results.values(rows["logistic", "first", "soft"]) - usual
        ),
        *(
            Claim(f"`{penalty}` above `logistic`", results.values(rows[penalty, "first", "hard"]) - usual)
            for penalty in plans.PENALTIES[1:]
        ),
        Claim(
            "second order above first (logistic)",
            results.values(rows["logistic", "second", "hard"]) - usual,
            in_paper=False,
        ),
    ]
    head = ["`aot_penalty`", "`rl_beta`", "`aot_dominance`", "hard sort", "soft sort"]
    return table(head, lines) + "\n" + findings(claims)


def shares(plan: Plan, results: Results) -> str:
    rows = plans.shares(plan, results)
    names = list(dict.fromkeys(name for _, name in rows))
    lines = [
        [f"{share:.0%}", *(percent(estimate(results.values(rows[share, name]))) for name in names)]
        for share in plan.positives
    ]
    claims = [
        Claim(
            f"{share:.0%} positives: `aot_unpaired` above {name}",
            results.values(rows[share, "aot_unpaired"]) - results.values(rows[share, name]),
            in_paper=share == 0.5 and name == "kto",
        )
        for share in plan.positives
        for name in names[1:]
    ]
    return table(["positives", *names], lines) + "\n" + findings(claims)


def flips(plan: Plan, results: Results) -> str:
    rows = plans.flips(plan, results)
    lines = [
        [f"{share:.0%}", *(percent(estimate(results.values(rows[share, method]))) for method in METHODS)]
        for share in plan.flips
    ]
    claims = [
        Claim(
            f"{share:.0%} flipped: `{ours}` above `{theirs}`",
            results.values(rows[share, ours]) - results.values(rows[share, theirs]),
            in_paper=False,
        )
        for share in plan.flips[1:]
        for ours, theirs in (("aot", "dpo"), ("aot", "ipo"), ("aot_unpaired", "kto"))
    ]
    return table(["flipped", *(f"`{m}`" for m in METHODS)], lines) + "\n" + findings(claims)


Section = Callable[[Plan, Results], str]
SECTIONS: dict[str, Section] = {
    "1. Methods": methods,
    "2. Quantile curves": curves,
    "3. rl_beta": betas,
    "4. The effective batch": sizes,
    "5. Penalties, sorts, orders": losses,
    "6. Few positives": shares,
    "7. Flipped preferences": flips,
}
