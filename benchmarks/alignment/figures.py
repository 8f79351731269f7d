"""The figures; a method has one colour in all of them.

May import `axolotl_aot.report.figures` (its colours), `benchmarks.alignment.batched`, `comparisons`,
`estimates`, `plan`, `results`, `scores`, `search_tables`, `searched`, `setting_tables`, `tables`; matplotlib.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from axolotl_aot.report.figures import COLOURS, RUNS
from benchmarks.alignment import comparisons
from benchmarks.alignment.batched.search import RATES, conditions
from benchmarks.alignment.cells import Cell
from benchmarks.alignment.estimates import estimate
from benchmarks.alignment.plan import BALANCED, METHODS, MICRO_BATCHES, NOT_STRATIFIED, Plan
from benchmarks.alignment.results import NotMeasured, Results
from benchmarks.alignment.scores import LEVELS
from benchmarks.alignment.search_tables import curves as rate_curves
from benchmarks.alignment.search_tables import name_of
from benchmarks.alignment.searched import PATH, read_search
from benchmarks.alignment.setting_tables import compared, words_of
from benchmarks.alignment.tables import margins, scope_name

REWARD = "reward of sampled answers (%)"
# ours first: the package's own colour for the run that a report is of
STYLES = dict(zip(("aot", "dpo", "kto", "ipo", "aot_unpaired"), RUNS, strict=True))
# of settings: the anchor and what is made of it share a colour, as do entropic couplings; dotted for pairs
SETTING_STYLES = {
    **STYLES,
    "apo_zero": ("#8C564B", "--"),
    **{
        f"{method}, entropic": ("#7F7F7F", dashes) for method, dashes in (("aot", ":"), ("aot_unpaired", "-"))
    },
    **{f"{method}, anchor": ("#0072B2", dashes) for method, dashes in (("aot", ":"), ("aot_unpaired", "-"))},
    **{f"{method}, doubted": ("#D55E00", dashes) for method, dashes in (("aot", ":"), ("aot_unpaired", "-"))},
}
LOWEST = 0.5  # reward in the figure of learning rates


def contenders(plan: Plan, results: Results) -> Figure:
    figure, axes = _panels(len(plan.places), 3.6)
    for axis, (place, rows) in zip(axes, compared(plan, results).items(), strict=True):
        names = list(rows)
        for height, name in enumerate(reversed(names)):
            found = estimate(100 * rows[name].values("reward"))
            reach = [[found.mean - found.low], [found.high - found.mean]]
            axis.errorbar(found.mean, height, xerr=reach, fmt="o", ms=4, color=SETTING_STYLES[name][0])
        axis.set_yticks(range(len(names)), reversed(names))
        axis.label_outer()
        axis.set_title(words_of(place.task, place.flipped), fontsize="medium")
        axis.set_xlabel(REWARD)
        axis.grid(alpha=0.3, linewidth=0.5)
    return figure


def rates(plan: Plan, results: Results) -> Figure:
    search = read_search()
    places = {name_of(where): rate_curves(search, where) for where in conditions()}
    if not any(places.values()):
        raise NotMeasured(f"{PATH.name} has no learning rates with fresh seeds")
    figure, axes = _panels(len(places), 3.6)
    for axis, (words, found) in zip(axes, places.items(), strict=True):
        for name, curve in found.items():
            colour, dashes = SETTING_STYLES[name]
            means = 100 * curve.rewards.mean(axis=1)
            axis.plot(curve.rates, means, color=colour, linestyle=dashes, marker="o", ms=2.5, label=name)
        axis.set_ylim(bottom=100 * LOWEST)
        _logarithmic(axis, RATES)
        axis.tick_params(axis="x", labelsize="small", labelrotation=45)
        axis.set_title(words, fontsize="medium")
        axis.set_xlabel("learning rate")
        axis.set_ylabel(REWARD)
        axis.grid(alpha=0.3, linewidth=0.5)
    handles = {
        label: line for axis in axes for line, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=6, fontsize="small")
    return figure


def curves(plan: Plan, results: Results) -> Figure:
    """The paper's figure 1: rewards, margins between their quantiles, log-likelihood ratios."""
    figure, axes = _panels(3)
    rows = comparisons.methods(plan, results)
    for method in METHODS:
        colour, dashes = STYLES[method]
        found = [results.of(cell)["pairs"]["curves"] for cell in rows[method,]]
        for side, line in (("chosen", "-"), ("rejected", ":")):
            rewards = np.mean([curve[side] for curve in found], axis=0)
            label = method if side == "chosen" else None
            axes[0].plot(LEVELS, rewards, color=colour, linestyle=line, label=label)
        ratios = np.array([curve["ratio"] for curve in found])
        for axis, values in zip(axes[1:], (margins(results, rows[method,]), ratios), strict=True):
            axis.plot(LEVELS, values.mean(0), color=colour, linestyle=dashes, label=method)
            axis.fill_between(LEVELS, values.min(0), values.max(0), color=colour, alpha=0.15, linewidth=0)
    axes[1].axhline(0, color=COLOURS["reference"], linestyle="--", linewidth=1)
    axes[2].plot(LEVELS, found[0]["base_ratio"], color=COLOURS["reference"], label="base")
    _dress(axes[0], "Rewards: chosen (solid), rejected (dotted)", "quantile level", "reward (nats)")
    _dress(axes[1], "Margin between quantiles", "quantile level", "chosen - rejected reward (nats)")
    _dress(axes[2], "Log-likelihood ratio", "quantile level", "log chosen / rejected (nats)")
    return figure


def betas(plan: Plan, results: Results) -> Figure:
    rows = comparisons.betas(plan, results)
    figure, (axis,) = _panels(1)
    for method in METHODS:
        cells = {beta: rows[method, beta] for beta in plan.betas}
        _line(axis, results, cells, method, *STYLES[method])
    _logarithmic(axis, plan.betas)
    _dress(axis, "At the best learning rate of each", "rl_beta", REWARD)
    return figure


def sizes(plan: Plan, results: Results) -> Figure:
    rows = comparisons.sizes(plan, results)
    figure, (axis,) = _panels(1)
    for scope, style in zip((None, *MICRO_BATCHES), RUNS, strict=False):
        cells = {size: row for (size, its), row in rows.items() if its == scope}
        _line(axis, results, cells, scope_name(scope).replace("`", ""), *style)
    _logarithmic(axis, plan.sizes)
    _dress(axis, "aot: what is sorted together", "effective batch (pairs)", REWARD)
    return figure


def shares(plan: Plan, results: Results) -> Figure:
    rows = comparisons.shares(plan, results)
    figure, (axis,) = _panels(1)
    variants = {NOT_STRATIFIED: "aot_unpaired", BALANCED: "kto"}
    for name in dict.fromkeys(n for _, n in rows):
        colour, dashes = STYLES[variants.get(name, name)]
        cells = {100 * share: row for (share, its), row in rows.items() if its == name}
        _line(axis, results, cells, name, colour, ":" if name in variants else dashes)
    _logarithmic(axis, [100 * share for share in plan.positives])
    _dress(axis, "Unpaired answers", "positives (%)", REWARD)
    return figure


def flips(plan: Plan, results: Results) -> Figure:
    rows = comparisons.flips(plan, results)
    figure, (axis,) = _panels(1)
    for method in METHODS:
        cells = {100 * share: rows[share, method] for share in plan.flips}
        _line(axis, results, cells, method, *STYLES[method])
    _dress(axis, "Wrong preferences", "flipped (%)", REWARD)
    return figure


# By the name of their file.
FIGURES: dict[str, Callable[[Plan, Results], Figure]] = {
    "contenders": contenders,
    "rates": rates,
    "curves": curves,
    "betas": betas,
    "sizes": sizes,
    "shares": shares,
    "flips": flips,
}


# --- Parts ------------------------------------------------------------------------------------------


def _panels(count: int, width: float = 5.4) -> tuple[Figure, list[Axes]]:
    """Beside each other. width: of one, in inches."""
    figure = Figure(figsize=(width * count, 3.8), layout="constrained")
    return figure, list(figure.subplots(1, count, squeeze=False)[0])


def _line(
    axis: Axes,
    results: Results,
    rows: Mapping[float, list[Cell]],
    label: str,
    colour: str,
    dashes: object,
) -> None:
    """The reward at each place of the x axis, with its interval."""
    places = list(rows)
    found = [estimate(100 * results.values(cells)) for cells in rows.values()]
    axis.plot(places, [e.mean for e in found], color=colour, linestyle=dashes, marker="o", ms=3, label=label)
    axis.fill_between(
        places, [e.low for e in found], [e.high for e in found], color=colour, alpha=0.15, linewidth=0
    )


def _logarithmic(axis: Axes, places: Sequence[float]) -> None:
    """A logarithmic x axis that names what was measured."""
    axis.set_xscale("log")
    axis.set_xticks(places, [f"{place:g}" for place in places])
    axis.minorticks_off()


def _dress(axis: Axes, title: str, across: str, up: str) -> None:
    axis.set_title(title, fontsize="medium")
    axis.set_xlabel(across)
    axis.set_ylabel(up)
    axis.grid(alpha=0.3, linewidth=0.5)
    axis.legend(fontsize="small", framealpha=0.9)
