"""The numbers of the dominance report: from log-probabilities to what `report.json` holds.

Each comparison asks whether one sample dominates another, before training (where the policy is the
reference) and after it: to first order at every quantile, to second order in the running integral of the
quantiles (see `axolotl_aot.dominance`). Intervals are percentile bootstrap intervals; pairs are resampled
as pairs, answers with a label within their label.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.stats import bootstrap, wasserstein_distance

from axolotl_aot.dominance import ANCHOR_METRICS, DOMINANCES, QuantileSteps, quantile_steps
from axolotl_aot.quantiles import PERCENTILES, margins, quantiles
from axolotl_aot.report.history import course, numbers_of
from axolotl_aot.report.runs import Answers, Comparison, Run, comparisons_of
from axolotl_aot.report.verdicts import CHANGES, base_model, clear_sign, verdict

SCHEMA_VERSION = 1

CONFIDENCE = 0.95
MOST_RESAMPLES, FEWEST_RESAMPLES = 999, 200
RESAMPLED_VALUES = 4_000_000  # in all; larger samples get fewer resamples, and need fewer
SEED = 0

CURVE_LEVELS = (np.arange(100) + 0.5) / 100  # of the curves, in [0, 1]


# --- Numbers ------------------------------------------------------------------------------------


def report(
    runs: list[Run],
    *,
    source: dict[str, Any],
    settings: dict[str, Any],
    history: list[dict[str, float]] | None = None,
    examples: dict[str, Any] | None = None,
    answers: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """All that `report.json` holds; rewards and log-probabilities in nats.

    Args:
        runs: what was scored, one for each trained model.
        source: which answers they are.
        settings: of the training or of the scoring, for the reader.
        history: Trainer's log, for the course of training; what is not a finite number is left out.
        examples: texts of answers, by run.
        answers: what the models say before and after training, by run, as `report.answers` has it.

    Raises:
        ValueError: a run with fewer than two answers of a label, or log-probabilities that are not finite.
    """
    log = [numbers_of(entry) for entry in history or []]
    return {
        "schema_version": SCHEMA_VERSION,
        "source": source,
        "settings": settings,
        "bootstrap": {"confidence": CONFIDENCE, "method": "percentile", "seed": SEED},
        "levels": CURVE_LEVELS.tolist(),
        "runs": {run.name: summary(run, settings.get("aot_anchor")) for run in runs},
        "examples": examples or {},
        "answers": answers or {},
        "course": course(log, runs[0].reference),
        "history": log,
    }


def summary(run: Run, anchor: float | None = None) -> dict[str, Any]:
    """The numbers of one run; anchor: its `aot_anchor`, where it has one. Raises as `report`."""
    _require_usable(run)
    states = {"before": run.before, "after": run}
    numbers = {
        "paired": run.paired,
        "reference": run.reference,
        "answers": {"chosen": len(run.chosen), "rejected": len(run.rejected)},
        "changes": _changes(run, anchor),
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
        drawn = (sample[i] for sample, i in zip(samples, rows, strict=True))
        masses = (w if w is None else w[i] for w, i in zip(weights, rows, strict=True))
        return _measure(*drawn, *masses)

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


def _changes(run: Run, anchor: float | None) -> dict[str, Any]:
    """Whether the answers of each label became more or less likely than under the reference."""
    sides = {"chosen": run.chosen, "rejected": run.rejected}
    numbers = {side: _change(answers, ANCHOR_METRICS[side].sign) for side, answers in sides.items()}
    signs = tuple(clear_sign(**number["change"]) for number in numbers.values())
    wrong = [tuple(part["value"] for part in n["wrong_side"].values()) for n in numbers.values()]
    displaced = signs[0] < 0
    return {
        **numbers,
        "verdict": CHANGES[signs],
        "displaced": displaced,
        "base_model": base_model(*wrong, displaced=displaced, anchor=anchor, reference=run.reference),
    }


def _change(answers: Answers, sign: int) -> dict[str, Any]:
    """sign: of a reward on the right side of the base model."""

    def measure(rows: np.ndarray) -> dict[str, Any]:
        rewards = answers.rewards[rows]
        weights = None if answers.weights is None else answers.weights[rows]
        depth = np.maximum(-sign * rewards, 0)
        return {
            "change": np.average(rewards, weights=weights),
            "share_that_fell": np.average(rewards < 0, weights=weights),
            "share": np.average(depth > 0, weights=weights),
            "nats": np.average(depth, weights=weights),
        }

    found = _bootstrap(measure, [len(answers)], paired=False)
    return {
        "log_probability_before": np.average(answers.reference, weights=answers.weights).item(),
        "log_probability_after": np.average(answers.policy, weights=answers.weights).item(),
        **{name: found.estimate(name) for name in ("change", "share_that_fell")},
        "wrong_side": {name: found.estimate(name) for name in ("share", "nats")},
    }


def _accuracy(run: Run) -> dict[str, Any]:
    """Share of the pairs whose chosen answer has the higher reward."""
    better, weights = run.chosen.rewards > run.rejected.rewards, run.chosen.weights

    def measure(rows: np.ndarray) -> dict[str, Any]:
        return {"accuracy": np.average(better[rows], weights=None if weights is None else weights[rows])}

    return _bootstrap(measure, [len(better)], paired=False).estimate("accuracy")


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
