"""The numbers of the dominance report: from log-probabilities to what `report.json` holds.

Each comparison asks whether one sample dominates another, before training (where the policy is the
reference) and after it: to first order at every quantile, to second order in the running integral of the
quantiles (see `axolotl_aot.dominance`). Intervals are percentile bootstrap intervals; pairs are resampled
as pairs, answers with a label within their label.

Imports NumPy, SciPy and torch; may import `axolotl_aot.curves`, `dominance`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.stats import bootstrap, wasserstein_distance

from axolotl_aot.curves import PERCENTILES, margins, quantiles
from axolotl_aot.dominance import DOMINANCES, QuantileSteps, quantile_steps

SCHEMA_VERSION = 1

CONFIDENCE = 0.95
MOST_RESAMPLES, FEWEST_RESAMPLES = 999, 200
RESAMPLED_VALUES = 4_000_000  # in all; larger samples get fewer resamples, and need fewer
SEED = 0

CURVE_LEVELS = (np.arange(100) + 0.5) / 100  # of the curves, in [0, 1]
NO_MASS = 1e-9  # a difference of levels that is rounding


# --- What a report is of ------------------------------------------------------------------------


@dataclass(frozen=True)
class Answers:
    """Log-probabilities of the completions of one label, in nats, each of shape (n,).

    weights: their masses; uniform where None. rows: where they stand in the data set; None where that is
    not known.
    """

    policy: np.ndarray
    reference: np.ndarray
    weights: np.ndarray | None = None
    rows: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.policy)

    @property
    def rewards(self) -> np.ndarray:
        """log pi(y|x) - log pi_ref(y|x), in nats."""
        return self.policy - self.reference

    @property
    def not_finite(self) -> int:
        """How many of the log-probabilities are NaN or infinite."""
        return int((~np.isfinite([self.policy, self.reference])).sum())


@dataclass(frozen=True)
class Run:
    """What a trained model and its reference say of a data set.

    paired: chosen[i] and rejected[i] answer the same prompt.
    """

    name: str
    paired: bool
    chosen: Answers
    rejected: Answers

    @property
    def before(self) -> "Run":
        """The same before training, where the policy is the reference."""
        return replace(
            self,
            chosen=replace(self.chosen, policy=self.chosen.reference),
            rejected=replace(self.rejected, policy=self.rejected.reference),
        )


# --- What is compared ---------------------------------------------------------------------------


class Comparison(NamedTuple):
    """One question of the report.

    title: a heading. quantity: what is compared, in nats, as an axis says it. upper, lower: names of the
    sample that should dominate and of the other. samples: both, of a run. before: whether it is asked of
    the reference, too; where not, both samples are equal there by definition.
    """

    title: str
    quantity: str
    upper: str
    lower: str
    samples: Callable[[Run], tuple[np.ndarray, np.ndarray]]
    before: bool = False
    needs_pairs: bool = False


COMPARISONS = {
    "rewards": Comparison(
        "Rewards of chosen and rejected answers",
        "reward: log policy / reference (nats)",
        "chosen",
        "rejected",
        lambda run: (run.chosen.rewards, run.rejected.rewards),
    ),
    "log_ratios": Comparison(
        "Log-likelihood ratio of chosen to rejected answers",
        "log chosen / rejected (nats)",
        "policy",
        "reference",
        lambda run: (
            run.chosen.policy - run.rejected.policy,
            run.chosen.reference - run.rejected.reference,
        ),
        needs_pairs=True,
    ),
    "log_probabilities": Comparison(
        "Log-probabilities of chosen and rejected answers",
        "log-probability (nats)",
        "chosen",
        "rejected",
        lambda run: (run.chosen.policy, run.rejected.policy),
        before=True,
    ),
}


def comparisons_of(run: Run) -> dict[str, Comparison]:
    """Those of `COMPARISONS` that a run's data allow."""
    return {key: value for key, value in COMPARISONS.items() if run.paired or not value.needs_pairs}


# --- Numbers ------------------------------------------------------------------------------------


def report(
    runs: list[Run],
    *,
    source: dict[str, Any],
    settings: dict[str, Any],
    history: list[dict[str, float]] | None = None,
    examples: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """All that `report.json` holds; rewards and log-probabilities in nats.

    Args:
        runs: what was scored, one for each trained model.
        source: which answers they are.
        settings: of the training or of the scoring, for the reader.
        history: Trainer's log, for the course of training; what is not a finite number is left out.
        examples: texts of answers, by run.

    Raises:
        ValueError: a run with fewer than two answers of a label, or log-probabilities that are not finite.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "source": source,
        "settings": settings,
        "bootstrap": {"confidence": CONFIDENCE, "method": "percentile", "seed": SEED},
        "levels": CURVE_LEVELS.tolist(),
        "runs": {run.name: summary(run) for run in runs},
        "examples": examples or {},
        "history": [_finite(entry) for entry in history or []],
    }


def _finite(entry: dict[str, Any]) -> dict[str, float]:
    return {k: v for k, v in entry.items() if isinstance(v, (int, float)) and math.isfinite(v)}


def summary(run: Run) -> dict[str, Any]:
    """The numbers of one run; raises as `report`."""
    _require_usable(run)
    states = {"before": run.before, "after": run}
    numbers = {
        "paired": run.paired,
        "answers": {"chosen": len(run.chosen), "rejected": len(run.rejected)},
        "changes": _changes(run),
        "comparisons": {
            key: {
                when: compare(comparison, state)
                for when, state in states.items()
                if comparison.before or when == "after"
            }
            for key, comparison in comparisons_of(run).items()
        },
    }
    if run.paired:
        numbers["accuracy"] = _accuracy(run)
    return numbers


def _require_usable(run: Run) -> None:
    for side, answers in (("chosen", run.chosen), ("rejected", run.rejected)):
        if len(answers) < 2:
            raise ValueError(f"{run.name}: {len(answers)} {side} answers; a report needs two or more")
        if answers.not_finite:
            raise ValueError(
                f"{run.name}: {answers.not_finite} log-probabilities of {side} answers are not finite"
            )


def compare(comparison: Comparison, run: Run) -> dict[str, Any]:
    """Whether one sample dominates the other, how clearly, and both quantile curves.

    Each interval is [low, high]. `holds_in_resamples` is the share of bootstrap resamples in which
    dominance holds.
    """
    samples = comparison.samples(run)
    weights = run.chosen.weights, run.rejected.weights

    def measure(*rows: np.ndarray) -> dict[str, Any]:
        chosen = (sample[i] for sample, i in zip(samples, rows, strict=True))
        masses = (w if w is None else w[i] for w, i in zip(weights, rows, strict=True))
        return _measure(*chosen, *masses)

    found = _bootstrap(measure, [len(sample) for sample in samples], run.paired)
    differ = found.resampled["wasserstein"] > 0
    steps = _steps(*samples, *weights)
    orders = {
        f"{order}_order": {
            **verdict(comparison, steps, order),
            "violation": found.value[f"{order}_size"].item(),
            "violation_interval": found.interval[f"{order}_size"].ravel().tolist(),
            "violation_rate": found.value[f"{order}_rate"].item(),
            "holds_in_resamples": ((found.resampled[f"{order}_size"] == 0) & differ).mean().item(),
        }
        for order in DOMINANCES
    }
    margin_columns = zip(PERCENTILES, found.value["margins"], found.interval["margins"].T, strict=True)
    return {
        "upper": comparison.upper,
        "lower": comparison.lower,
        **orders,
        "wasserstein": found.estimate("wasserstein"),
        "margins": {
            f"p{percentile}": {"value": value.item(), "interval": interval.tolist()}
            for percentile, value, interval in margin_columns
        },
        "resamples": found.resampled["wasserstein"].shape[-1],
        "curves": {
            name: {"quantiles": found.value[name].tolist(), "band": found.interval[name].tolist()}
            for name in ("upper", "lower")
        },
    }


def _measure(
    upper: np.ndarray, lower: np.ndarray, upper_weights: np.ndarray | None, lower_weights: np.ndarray | None
) -> dict[str, Any]:
    """All numbers of a comparison that get an interval, by name; scalars, or of shape (k,)."""
    steps = _steps(upper, lower, upper_weights, lower_weights)
    gap = steps.upper - steps.lower
    violations = {name: order.violation(gap, steps.mass) for name, order in DOMINANCES.items()}
    return {
        **{f"{name}_size": size.item() for name, (size, _) in violations.items()},
        **{f"{name}_rate": rate.item() for name, (_, rate) in violations.items()},
        "wasserstein": wasserstein_distance(upper, lower, upper_weights, lower_weights),
        "margins": margins(upper, lower, upper_weights, lower_weights),
        "upper": quantiles(upper, CURVE_LEVELS, upper_weights),
        "lower": quantiles(lower, CURVE_LEVELS, lower_weights),
    }


def _steps(upper: np.ndarray, lower: np.ndarray, *weights: np.ndarray | None) -> QuantileSteps:
    masses = [None if array is None else torch.from_numpy(array) for array in weights]
    return quantile_steps(
        torch.from_numpy(upper),
        torch.from_numpy(lower),
        upper_weights=masses[0],
        lower_weights=masses[1],
    )


def _changes(run: Run) -> dict[str, Any]:
    """Whether the answers of each label became more or less likely than under the reference."""
    sides = {"chosen": run.chosen, "rejected": run.rejected}
    numbers = {side: _change(answers) for side, answers in sides.items()}
    signs = tuple(_clear_sign(**number["change"]) for number in numbers.values())
    return {**numbers, "verdict": CHANGES[signs]}


def _clear_sign(value: float, interval: list[float]) -> int:
    """0 where the interval leaves the sign open."""
    return 0 if interval[0] <= 0 <= interval[1] else int(np.sign(value))


# By the signs of the mean change of chosen and rejected answers.
CHANGES = {
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


def _change(answers: Answers) -> dict[str, Any]:
    def measure(rows: np.ndarray) -> dict[str, Any]:
        rewards = answers.rewards[rows]
        weights = None if answers.weights is None else answers.weights[rows]
        return {
            "change": np.average(rewards, weights=weights),
            "share_that_fell": np.average(rewards < 0, weights=weights),
        }

    found = _bootstrap(measure, [len(answers)], paired=False)
    return {
        "log_probability_before": np.average(answers.reference, weights=answers.weights).item(),
        "log_probability_after": np.average(answers.policy, weights=answers.weights).item(),
        **{name: found.estimate(name) for name in found.value},
    }


def _accuracy(run: Run) -> dict[str, Any]:
    """Share of the pairs whose chosen answer has the higher reward."""
    better, weights = run.chosen.rewards > run.rejected.rewards, run.chosen.weights

    def measure(rows: np.ndarray) -> dict[str, Any]:
        return {"accuracy": np.average(better[rows], weights=None if weights is None else weights[rows])}

    return _bootstrap(measure, [len(better)], paired=False).estimate("accuracy")


# --- Words --------------------------------------------------------------------------------------


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
    """Levels in words, as "below the 12th percentile"; gaps of less than a percentile are not told."""
    told: list[tuple[float, float]] = []
    for low, high in failing:
        if told and low - told[-1][1] < 0.01:
            low = told.pop()[0]
        told.append((low, high))
    share = sum(high - low for low, high in failing)
    if len(told) > 2:
        amount = f"{share:.0%}" if share >= 0.01 else f"{share:.1%}" if share >= 0.001 else "less than 0.1%"
        return f"at {amount} of the quantiles, {_place(told[0][0], told[-1][1])}"
    if share < 1 - NO_MASS and told[0][0] < NO_MASS and told[0][1] > 1 - NO_MASS:
        return f"at {share:.1%} of the quantiles"
    return " and ".join(_place(low, high) for low, high in told)


def _place(low: float, high: float) -> str:
    if low < NO_MASS and high > 1 - NO_MASS:
        return "at every quantile"
    if low < NO_MASS:
        return f"below the {_ordinal(100 * high)} percentile"
    if high > 1 - NO_MASS:
        return f"above the {_ordinal(100 * low)} percentile"
    first, last = _ordinal(100 * low), _ordinal(100 * high)
    return f"around the {first} percentile" if first == last else f"from the {first} to the {last} percentile"


def _ordinal(percentile: float) -> str:
    """A percentile as a word; with a decimal near the ends, where the nearest whole number is none."""
    if not 0.95 <= percentile <= 99.05:
        if percentile < 50:
            return f"{percentile:.2g}th"
        rest = max(round(100 - percentile, 9), 1e-7)  # to one digit of it
        return f"{percentile:.{max(1, -math.floor(math.log10(rest)))}f}th"
    number = round(percentile)
    endings = {1: "st", 2: "nd", 3: "rd"}
    return f"{number}{'th' if 10 < number % 100 < 14 else endings.get(number % 10, 'th')}"


# --- Bootstrap ----------------------------------------------------------------------------------


class Bootstrapped(NamedTuple):
    """By name: a statistic's value, shape (k,), its interval, (2, k), and its resampled values, (k, r)."""

    value: dict[str, np.ndarray]
    interval: dict[str, np.ndarray]
    resampled: dict[str, np.ndarray]

    def estimate(self, name: str) -> dict[str, Any]:
        """Of a scalar, as `report.json` has it."""
        return {"value": self.value[name].item(), "interval": self.interval[name].ravel().tolist()}


def _bootstrap(statistic: Callable[..., dict[str, Any]], sizes: Sequence[int], paired: bool) -> Bootstrapped:
    """Percentile bootstrap of a statistic.

    Args:
        statistic: of the numbers of rows, an array of shape (size,) for each sample.
        sizes: of the samples.
        paired: whether rows of the same number belong together.
    """
    rows = [np.arange(size) for size in sizes]
    value = {name: np.ravel(part) for name, part in statistic(*rows).items()}
    ends = np.cumsum([len(part) for part in value.values()])[:-1]

    def flat(*resamples: np.ndarray, axis: int) -> np.ndarray:
        return np.stack([np.hstack([*statistic(*one).values()]) for one in zip(*resamples, strict=True)], -1)

    result = bootstrap(
        rows,
        flat,
        n_resamples=int(np.clip(RESAMPLED_VALUES // sum(sizes), FEWEST_RESAMPLES, MOST_RESAMPLES)),
        batch=10,
        vectorized=True,
        paired=paired,
        axis=-1,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(SEED),
    )
    intervals = np.split(np.stack(result.confidence_interval), ends, axis=1)
    resampled = np.split(result.bootstrap_distribution, ends)
    return Bootstrapped(
        value, dict(zip(value, intervals, strict=True)), dict(zip(value, resampled, strict=True))
    )
