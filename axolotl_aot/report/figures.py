"""The plots of the dominance report. One colour means one thing in all of them.

Each function makes a `matplotlib.figure.Figure` from what `report.statistics` has computed; nothing is
shown or saved here. Colours are those of Okabe and Ito, which colour-blind readers can tell apart; where
two curves share one, they differ in their dashes.
"""

from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from axolotl_aot.dominance import ANCHOR_METRICS
from axolotl_aot.quantiles import MARGIN_METRICS, quantiles
from axolotl_aot.report.history import series
from axolotl_aot.report.runs import COMPARISONS, Run, comparisons_of
from axolotl_aot.report.statistics import CURVE_LEVELS
from axolotl_aot.report.verdicts import WRONG_SIDE

DPI = 150
PANEL = (4.2, 3.6)  # inches
COLOURS = {"chosen": "#0072B2", "rejected": "#D55E00", "reference": "#7F7F7F"}
# Of trained models: the run that the report is of comes first.
RUNS = (
    ("#009E73", "-"),
    ("#CC79A7", "--"),
    ("#E69F00", "-."),
    ("#56B4E9", ":"),
    ("#000000", (0, (5, 1, 1, 1))),
)
EVALUATION = "#000000"
ZERO = {"color": COLOURS["reference"], "linestyle": "--", "linewidth": 1}
Numbers = dict[str, Any]


def quantiles_figure(report: Numbers, name: str) -> Figure:
    """Chosen against rejected answers: rewards, and log-probabilities before and after training."""
    run = report["runs"][name]
    comparisons = run["comparisons"]
    figure, axes = _panels(3)
    _curves(axes[0], report, comparisons["rewards"]["after"])
    axes[0].axhline(0, **ZERO, label="both, before training")
    _dress(axes[0], "Rewards", COMPARISONS["rewards"].quantity)
    for axis, when in zip(axes[1:], ("before", "after"), strict=True):
        _curves(axis, report, comparisons["log_probabilities"][when])
        _dress(axis, f"Log-probabilities {when} training", COMPARISONS["log_probabilities"].quantity)
    axes[2].sharey(axes[1])
    return figure


def log_ratios_figure(report: Numbers, name: str) -> Figure:
    """The policy against the reference: chosen answers, rejected ones, and of pairs their ratio."""
    run = report["runs"][name]
    comparisons = run["comparisons"]
    figure, axes = _panels(2 + run["paired"])
    states = comparisons["log_probabilities"]
    for axis, side, end in ((axes[0], "chosen", "upper"), (axes[1], "rejected", "lower")):
        for when, dashes, of in (("before", "--", "reference"), ("after", "-", "policy")):
            _curve(axis, report["levels"], states[when]["curves"][end], COLOURS[side], dashes, of)
        _dress(axis, f"{side.capitalize()} answers", COMPARISONS["log_probabilities"].quantity)
    if run["paired"]:
        curves = comparisons["log_ratios"]["after"]["curves"]
        _curve(axes[2], report["levels"], curves["lower"], COLOURS["reference"], "--", "reference")
        _curve(axes[2], report["levels"], curves["upper"], RUNS[0][0], "-", "policy")
        _dress(axes[2], "Pairs", COMPARISONS["log_ratios"].quantity)
    return figure


def training_figure(report: Numbers) -> Figure:
    """Loss, dominance violation, margins and likelihood displacement over the optimizer steps."""
    history = report["history"]
    figure, axes = _panels(4)
    for axis, key, title, unit in (
        (axes[0], "loss", "Loss", "loss"),
        (axes[1], "dominance/violation", "Violation of dominance", "violation (nats)"),
    ):
        for prefix, dashes, label in (("", "-", "training"), ("eval_", "--", "evaluation")):
            steps, values = series(history, prefix + key)
            if steps:
                marker = "o" if prefix or len(steps) == 1 else None
                colour = EVALUATION if prefix else RUNS[0][0]
                axis.plot(steps, values, dashes, color=colour, marker=marker, markersize=4, label=label)
        _dress(axis, title, unit, across="optimizer step")
    axes[1].set_ylim(bottom=0)
    _fan(axes[2], history)
    _dress(axes[2], "Margins between quantiles", "upper - lower (nats)", across="optimizer step")
    _wrong_side(axes[3], history)
    (reference,) = {run["reference"] for run in report["runs"].values()}
    _dress(axes[3], f"On the wrong side of the {reference}", "share of answers", across="optimizer step")
    for axis in axes:
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def comparison_figure(report: Numbers) -> Figure:
    """Several runs side by side: rewards of each, and over each other what sets them apart.

    As the paper's figure 1 (arXiv 2406.05882): the margin between the quantiles of chosen and rejected
    rewards, and, of pairs, the log-likelihood ratio of chosen to rejected answers under each policy and
    under the reference.
    """
    runs = report["runs"]
    paired = all(run["paired"] for run in runs.values())
    columns = max(len(runs), 2)
    figure = Figure(figsize=(PANEL[0] * 0.85 * columns, 2 * PANEL[1]), layout="constrained")
    above, below = figure.subfigures(2, 1)
    side_by_side = above.subplots(1, len(runs), sharey=True, squeeze=False)[0]
    for axis, (name, run) in zip(side_by_side, runs.items(), strict=True):
        _curves(axis, report, run["comparisons"]["rewards"]["after"])
        axis.axhline(0, **ZERO, label="both, before training")
        _dress(axis, f"Rewards, {name}", COMPARISONS["rewards"].quantity)
        axis.label_outer()
    axes = below.subplots(1, 1 + paired, squeeze=False)[0]
    for (name, run), (colour, dashes) in zip(runs.items(), cycle(RUNS)):
        curves = run["comparisons"]["rewards"]["after"]["curves"]
        gap = np.subtract(curves["upper"]["quantiles"], curves["lower"]["quantiles"])
        axes[0].plot(report["levels"], gap, color=colour, linestyle=dashes, label=name)
    axes[0].axhline(0, **ZERO)
    _dress(axes[0], "Margin between the quantiles of the rewards", "chosen - rejected (nats)")
    if paired:
        ratios = {name: run["comparisons"]["log_ratios"]["after"]["curves"] for name, run in runs.items()}
        base = next(iter(ratios.values()))["lower"]["quantiles"]
        axes[1].plot(report["levels"], base, color=COLOURS["reference"], label="reference")
        for (name, curves), (colour, dashes) in zip(ratios.items(), cycle(RUNS)):
            axes[1].plot(
                report["levels"], curves["upper"]["quantiles"], color=colour, linestyle=dashes, label=name
            )
        _dress(axes[1], "Log-likelihood ratio of chosen to rejected", COMPARISONS["log_ratios"].quantity)
    return figure


def live_figure(run: Run, step: int) -> Figure:
    """The quantile curves of an evaluation during training; without bands, which would take seconds."""
    comparisons = {key: value for key, value in comparisons_of(run).items() if not value.before}
    figure, axes = _panels(len(comparisons))
    for axis, comparison in zip(axes, comparisons.values(), strict=True):
        samples = comparison.samples(run)
        weights = run.chosen.weights, run.rejected.weights
        for name, sample, mass in zip((comparison.upper, comparison.lower), samples, weights, strict=True):
            colour = COLOURS.get(name, RUNS[0][0])
            axis.plot(CURVE_LEVELS, quantiles(sample, CURVE_LEVELS, mass), color=colour, label=name)
        _dress(axis, f"{comparison.title}, step {step}", comparison.quantity)
    return figure


# --- Parts --------------------------------------------------------------------------------------


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(PANEL[0] * count, PANEL[1]), layout="constrained")
    return figure, list(figure.subplots(1, count, squeeze=False)[0])


def _curves(axis: Axes, report: Numbers, compared: Numbers) -> None:
    """Both quantile curves of a comparison of chosen and rejected answers, with their bands."""
    for end, width in (
        ("upper", 2.4),
        ("lower", 1.4),
    ):  # of unequal widths, so that both show where they coincide
        name = compared[end]
        _curve(axis, report["levels"], compared["curves"][end], COLOURS[name], "-", name, width)


def _curve(
    axis: Axes,
    levels: list[float],
    curve: Numbers,
    colour: str,
    dashes: str,
    label: str,
    width: float = 1.6,
) -> None:
    axis.plot(levels, curve["quantiles"], color=colour, linestyle=dashes, label=label, linewidth=width)
    axis.fill_between(levels, *curve["band"], color=colour, alpha=0.2, linewidth=0)


def _fan(axis: Axes, history: list[Numbers]) -> None:
    """The percentiles of the margin while training, and its median in the evaluations."""
    names = {percentile: series(history, metric) for percentile, metric in MARGIN_METRICS.items()}
    colour = RUNS[0][0]
    for low, high, alpha in ((5, 95, 0.2), (25, 75, 0.35)):
        axis.fill_between(
            names[low][0],
            names[low][1],
            names[high][1],
            color=colour,
            alpha=alpha,
            linewidth=0,
            label=f"{low}th to {high}th percentile",
        )
    axis.plot(*names[50], color=colour, label="median")
    steps, values = series(history, f"eval_{MARGIN_METRICS[50]}")
    if steps:
        axis.plot(steps, values, "--o", color=EVALUATION, markersize=4, label="median, evaluation")
    axis.axhline(0, **ZERO)


def _wrong_side(axis: Axes, history: list[Numbers]) -> None:
    """Shares of chosen answers that are less, and of rejected ones that are more likely than before."""
    for side, metric in ANCHOR_METRICS.items():
        label = f"{side}, {WRONG_SIDE[side]}"
        steps, values = series(history, metric.share)
        marker = "o" if len(steps) == 1 else None
        axis.plot(steps, values, color=COLOURS[side], marker=marker, markersize=4, label=label)
        steps, values = series(history, f"eval_{metric.share}")
        if steps:
            axis.plot(steps, values, "--o", color=COLOURS[side], markersize=4, label=f"{side}, evaluation")
    axis.set_ylim(-0.03, 1.03)


def _dress(axis: Axes, title: str, quantity: str, across: str = "quantile level") -> None:
    axis.set_title(title, fontsize="medium")
    axis.set_xlabel(across)
    axis.set_ylabel(quantity)
    axis.grid(alpha=0.3, linewidth=0.5)
    for edge in ("top", "right"):
        axis.spines[edge].set_visible(False)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize="small", framealpha=0.9)
