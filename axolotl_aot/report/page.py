"""The report's files: `report.json`, the plots, and `report.html`, which needs no other file."""

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader
from matplotlib.figure import Figure

from axolotl_aot.quantiles import PERCENTILES
from axolotl_aot.report.answers import visible
from axolotl_aot.report.figures import (
    DPI,
    comparison_figure,
    log_ratios_figure,
    quantiles_figure,
    training_figure,
)
from axolotl_aot.report.runs import COMPARISONS
from axolotl_aot.report.verdicts import NO_MASS

HTML = "report.html"
NUMBERS = "report.json"
PIXELS_PER_INCH = 80  # of a plot in the page


class Plot(NamedTuple):
    """A plot of the report.

    title: with `{run}` for the name of the first run. wanted: whether there is anything to show. alt: what it
    shows, in words, for those who do not see it.
    """

    title: str
    wanted: Callable[[dict[str, Any]], bool]
    draw: Callable[[dict[str, Any]], Figure]
    alt: Callable[[dict[str, Any]], str]


def _first(report: dict[str, Any]) -> str:
    return next(iter(report["runs"]))


def _comparison_alt(report: dict[str, Any]) -> str:
    found = [f"{name}: {_verdict(run, 'rewards', 'after')}" for name, run in report["runs"].items()]
    return (
        "Quantile curves of the rewards of each run, and, over each other, what sets the runs apart. "
        f"Rewards of {'; '.join(found)}."
    )


def _quantiles_alt(report: dict[str, Any]) -> str:
    run = report["runs"][_first(report)]
    return (
        "Three plots with a quantile curve of chosen and one of rejected answers. Rewards: "
        f"{_verdict(run, 'rewards', 'after')}. Log-probabilities before training: "
        f"{_verdict(run, 'log_probabilities', 'before')}; after training: "
        f"{_verdict(run, 'log_probabilities', 'after')}."
    )


def _log_ratios_alt(report: dict[str, Any]) -> str:
    run = report["runs"][_first(report)]
    pairs = " The last plot: the ratio of chosen to rejected answers of each pair." if run["paired"] else ""
    return (
        "Quantile curves of log-probabilities under the policy and under the reference, of chosen and of "
        f"rejected answers: {run['changes']['verdict']}.{pairs}"
    )


def _training_alt(report: dict[str, Any]) -> str:
    return (
        "Four plots over the optimizer steps: loss, violation of dominance, margins between quantiles, and "
        "the share of answers on the wrong side of the reference. " + "; ".join(report["course"])
    )


def _verdict(run: dict[str, Any], comparison: str, when: str) -> str:
    return run["comparisons"][comparison][when]["first_order"]["verdict"]


# By file name.
PLOTS = {
    "comparison.png": Plot(
        "Several runs side by side", lambda r: len(r["runs"]) > 1, comparison_figure, _comparison_alt
    ),
    "quantiles.png": Plot(
        "Chosen against rejected answers: {run}",
        lambda r: True,
        lambda r: quantiles_figure(r, _first(r)),
        _quantiles_alt,
    ),
    "log_ratios.png": Plot(
        "The policy against the reference: {run}",
        lambda r: True,
        lambda r: log_ratios_figure(r, _first(r)),
        _log_ratios_alt,
    ),
    "training.png": Plot(
        "The course of training: {run}", lambda r: bool(r["history"]), training_figure, _training_alt
    ),
}


def write_report(folder: Path, report: dict[str, Any]) -> Path:
    """Write the report's files into `folder`; returns the page's path.

    The numbers come first, so that a plot that cannot be drawn does not lose them. A plot of an earlier
    report that this one does not have is removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / NUMBERS).write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", "utf-8")
    figures = []
    for name, plot in PLOTS.items():
        path = folder / name
        if not plot.wanted(report):
            path.unlink(missing_ok=True)
            continue
        figure = plot.draw(report)
        figure.savefig(path, dpi=DPI)
        figures.append(
            {
                "title": plot.title.format(run=_first(report)),
                "alt": plot.alt(report),
                "width": round(figure.get_figwidth() * PIXELS_PER_INCH),
                "data": base64.b64encode(path.read_bytes()).decode(),
            }
        )
    page = folder / HTML
    page.write_text(_render(report, figures), "utf-8")
    return page


def _render(report: dict[str, Any], figures: list[dict[str, Any]]) -> str:
    environment = Environment(loader=PackageLoader("axolotl_aot.report"), autoescape=True, trim_blocks=True)
    environment.filters.update(
        nats=_number,
        share=_share,
        interval=lambda ends: f"[{', '.join(map(_number, ends))}]",
        visible=visible,
        shares=lambda ends: f"[{', '.join(map(_share, ends))}]",
    )
    return environment.get_template(HTML).render(
        report=report, figures=figures, comparisons=COMPARISONS, percentiles=PERCENTILES
    )


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def _share(value: float) -> str:
    """To a tenth of a percent; 0% and 100% are said of none and all only."""
    if NO_MASS < value < 0.0005:
        return "less than 0.1%"
    if 0.9995 <= value < 1 - NO_MASS:
        return "more than 99.9%"
    return f"{value:.1%}".replace(".0%", "%")
