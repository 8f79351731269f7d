"""What the report's numbers say, in words."""

import math
from typing import Any

import numpy as np
import torch

from axolotl_aot.dominance import DOMINANCES, QuantileSteps
from axolotl_aot.dominance.orders import without_rounding
from axolotl_aot.report.runs import BASE_MODEL, Comparison

NO_MASS = 1e-9  # a difference of levels that is rounding
UNTOLD = 0.01  # of what words name, the share at most where they are not right


def verdict(comparison: Comparison, steps: QuantileSteps, order: str) -> dict[str, Any]:
    """Whether dominance of an order holds, and a line that says so; equal curves do not dominate."""
    upper, lower = comparison.upper, comparison.lower
    failing = failing_levels(steps, order)
    if failing:
        return {"holds": False, "verdict": f"{upper} does not dominate {lower}: fails {_places(failing)}"}
    if torch.equal(steps.upper, steps.lower):
        return {"holds": False, "verdict": f"{upper} and {lower} are equal at every quantile"}
    return {"holds": True, "verdict": f"{upper} dominates {lower} {WHERE[order]}"}


WHERE = {"first": "at every quantile", "second": "to second order"}


def failing_levels(steps: QuantileSteps, order: str) -> list[tuple[float, float]]:
    """Where dominance of an order fails: intervals of levels in [0, 1], in order, that do not touch."""
    mass, gap = steps.mass, steps.upper - steps.lower
    ends = torch.cumsum(mass, 0)
    starts = ends - mass
    value_at_end = DOMINANCES[order].argument(gap, mass)
    if order == "first":  # constant on a step
        value_at_start = value_at_end
    else:  # linear on a step, from where the last one ended
        value_at_end = without_rounding(value_at_end, gap, mass)
        value_at_start = torch.cat([value_at_end.new_zeros(1), value_at_end[:-1]])
    crossing = starts + mass * value_at_start / (value_at_start - value_at_end)
    begin = torch.where(value_at_start < 0, starts, crossing)
    end = torch.where(value_at_end < 0, ends, crossing)
    fails = (torch.minimum(value_at_start, value_at_end) < 0) & (mass > 0)
    merged: list[tuple[float, float]] = []
    for low, high in zip(begin[fails].tolist(), end[fails].tolist(), strict=True):
        if merged and low - merged[-1][1] < NO_MASS:
            low = merged.pop()[0]
        merged.append((low, high))
    return merged


def _places(failing: list[tuple[float, float]]) -> str:
    """Levels in words. One or two intervals are named: dominance fails all over them, and nowhere else.
    Otherwise the words give their share, and what all of them lie in. Percentiles are rounded.
    """
    named: list[tuple[float, float]] = []
    for low, high in failing:  # gaps of less than a percentile are not told
        if named and low - named[-1][1] < 0.01:
            low = named.pop()[0]
        named.append((low, high))
    share = sum(high - low for low, high in failing)
    untold = sum(high - low for low, high in named) - share
    exact = untold < max(NO_MASS, UNTOLD * share) and (share > 1 - NO_MASS or not _whole(named))
    if exact and len(named) <= 2:
        return " and ".join(_place(low, high) for low, high in named)
    return f"at {_amount(share)} of the quantiles, {_range(named[0][0], named[-1][1])}"


def _whole(places: list[tuple[float, float]]) -> bool:
    return len(places) == 1 and places[0][0] < NO_MASS and places[0][1] > 1 - NO_MASS


def _range(low: float, high: float) -> str:
    """Between which levels all of them lie."""
    if low < NO_MASS and high > 1 - NO_MASS:
        return "spread over the whole range"
    return f"all of them {_place(low, high)}"


def _place(low: float, high: float) -> str:
    if low < NO_MASS and high > 1 - NO_MASS:
        return "at every quantile"
    if low < NO_MASS:
        return f"below the {_ordinal(high)} percentile"
    if high > 1 - NO_MASS:
        return f"above the {_ordinal(low)} percentile"
    first, last = _ordinal(low), _ordinal(high)
    return f"around the {first} percentile" if first == last else f"from the {first} to the {last} percentile"


def _ordinal(level: float) -> str:
    """A percentile as a word: a whole number; near the ends two digits of the distance from there."""
    distance = 100 * max(min(level, 1 - level), NO_MASS)
    if distance >= 0.95:
        number = round(100 * level)
        endings = {1: "st", 2: "nd", 3: "rd"}
        return f"{number}{'th' if 10 < number % 100 < 14 else endings.get(number % 10, 'th')}"
    decimals = 1 - math.floor(math.log10(distance))
    return f"{100 * level:.{decimals}f}".rstrip("0").rstrip(".") + "th"


def _amount(share: float) -> str:
    """A share that is neither none nor all, nor read as such."""
    if not 0.0005 <= share < 0.9995:
        return "less than 0.1%" if share < 0.5 else "more than 99.9%"
    return f"{share:.0%}" if 0.0095 <= share < 0.995 else f"{share:.1%}"


# --- Against the base model ---------------------------------------------------------------------

# How an answer of a label is, which is on the wrong side of the base model.
WRONG_SIDE = {"chosen": "less likely", "rejected": "more likely"}


def base_model(
    chosen: tuple[float, float],
    rejected: tuple[float, float],
    *,
    displaced: bool,
    anchor: float | None,
    reference: str = BASE_MODEL,
) -> str:
    """How many answers are on the wrong side of the base model, by how much, and what can be done.

    chosen, rejected: of the label's answers, the share that is, and the mean over all of them of how far, in
    nats. displaced: whether chosen answers became less likely on the whole (likelihood displacement). anchor:
    the run's `aot_anchor`; None where it has none. reference: what takes the base model's place, in words.
    """
    words = (
        f"{share_in_words(chosen[0])} of the chosen answers are {WRONG_SIDE['chosen']} than under the "
        f"{reference}{_depth(*chosen, ' nats on average')}, and {share_in_words(rejected[0])} of the "
        f"rejected ones {WRONG_SIDE['rejected']}{_depth(*rejected)}"
    )
    if not displaced:
        return words
    moves = "the model moves away from what it should prefer (likelihood displacement)"
    return f"{words}: {moves}{_remedy(anchor, reference)}"


def _depth(share: float, nats: float, unit: str = "") -> str:
    """By how much, in the mean over those that are on the wrong side."""
    return f", by {nats_in_words(nats / share)}{unit}" if share else ""


def _remedy(anchor: float | None, reference: str) -> str:
    if anchor is None:
        return ""
    if anchor == 1:
        return ", although `aot_anchor: 1` asks for nothing but the opposite"
    return (
        f"; `aot_anchor`, here {anchor:g}, is the weight of what holds chosen answers above the {reference}"
    )


def share_in_words(share: float) -> str:
    """As "31%"; "none" and "all" where it is 0 and 1, but for rounding."""
    if share < NO_MASS:
        return "none"
    if share > 1 - NO_MASS:
        return "all"
    return _amount(share)


def nats_in_words(value: float) -> str:
    """Without their unit."""
    return f"{value:.3g}" if value >= 0.01 else "less than 0.01"


def clear_sign(value: float, interval: list[float]) -> int:
    """0 where the interval leaves the sign open."""
    return 0 if interval[0] <= 0 <= interval[1] else int(np.sign(value))


# By the signs of the mean change of chosen and rejected answers.
CHANGES: dict[tuple[int, ...], str] = {
    (1, 1): "both became more likely",
    (1, 0): "chosen answers became more likely, rejected ones did not clearly change",
    (1, -1): "chosen answers became more likely, rejected ones less likely",
    (0, 1): "chosen answers did not clearly change, rejected ones became more likely",
    (0, 0): "neither clearly changed",
    (0, -1): "chosen answers did not clearly change, rejected ones became less likely",
    (-1, 1): "chosen answers became less likely, rejected ones more likely: the wrong way round",
    (-1, 0): "chosen answers became less likely, rejected ones did not clearly change",
    (-1, -1): "both became less likely",
}
