"""Every number of the report, computed again from the raw log-probabilities; intervals by their coverage."""

import itertools
import json
import re
from collections import Counter
from fractions import Fraction

import numpy as np
import ot
import pytest
import torch
from scipy import stats

from axolotl_aot.dominance import quantile_steps
from axolotl_aot.report import statistics as module
from axolotl_aot.report.runs import COMPARISONS, Answers, Run
from axolotl_aot.report.statistics import compare, report, summary
from axolotl_aot.report.verdicts import verdict

LEVELS = (np.arange(100) + 0.5) / 100
SCALARS = ("first_size", "second_size", "wasserstein")


def make_run(n: int, m: int, paired: bool, weighted: bool = False, seed: int = 0) -> Run:
    rng = np.random.default_rng(seed)
    sides = []
    for size, shift, scale in ((n, 0.4, 1.0), (m, -0.3, 1.6)):
        reference = rng.normal(-12, 3, size)
        weights = rng.integers(1, 4, size).astype(float) if weighted else None
        sides.append(Answers(reference + rng.normal(shift, scale, size), reference, weights))
    if paired and weighted:
        sides[1] = Answers(sides[1].policy, sides[1].reference, sides[0].weights)
    return Run("run", paired, *sides)


RUNS = {
    "pairs": make_run(60, 60, True),
    "weighted pairs": make_run(40, 40, True, weighted=True),
    "labels": make_run(60, 45, False),
    "weighted labels": make_run(30, 41, False, weighted=True),
}


# --- The same numbers, another way --------------------------------------------------------------


def samples_of(run: Run) -> dict[tuple[str, str], tuple[np.ndarray, np.ndarray]]:
    """What each comparison compares, written out."""
    c, r = run.chosen, run.rejected
    samples = {
        ("rewards", "after"): (c.policy - c.reference, r.policy - r.reference),
        ("log_probabilities", "before"): (c.reference, r.reference),
        ("log_probabilities", "after"): (c.policy, r.policy),
    }
    if run.paired:
        samples["log_ratios", "after"] = (c.policy - r.policy, c.reference - r.reference)
    return samples


def repeated(sample: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    """Weights are whole numbers here: as many rows each."""
    return np.sort(sample if weights is None else np.repeat(sample, weights.astype(int)))


def quantile(sample: np.ndarray, levels: np.ndarray) -> np.ndarray:
    index = np.ceil(np.round(levels * len(sample), 9)).astype(int) - 1
    return sample[np.clip(index, 0, None)]


def numbers(upper: np.ndarray, lower: np.ndarray) -> dict[str, float]:
    """Of sorted samples without weights."""
    n, m = len(upper), len(lower)
    edges = np.union1d(np.arange(1, n + 1) * m, np.arange(1, m + 1) * n)
    mass = np.diff(edges, prepend=0) / (n * m)
    gap = upper[(edges - 1) // m] - lower[(edges - 1) // n]
    knots = np.concatenate([[0], edges / (n * m)])
    integral = np.concatenate([[0], np.cumsum(mass * gap)])
    # the integral is linear between its knots and, with its zeros added, of one sign in between
    zeros = [
        a + (b - a) * (-s) / (e - s)
        for a, b, s, e in zip(knots[:-1], knots[1:], integral[:-1], integral[1:], strict=True)
        if s * e < 0
    ]
    p = np.union1d(knots, zeros)
    below = np.minimum(np.interp(p, knots, integral), 0)
    middle = np.interp((p[1:] + p[:-1]) / 2, knots, integral)
    return {
        "first_size": float(mass @ np.maximum(-gap, 0)),
        "first_rate": float(mass[gap < 0].sum()),
        "second_size": float(-np.trapezoid(below, p)),
        "second_rate": float(np.diff(p)[middle < 0].sum()),
        "wasserstein": ot.wasserstein_1d(upper, lower, p=1),
    }


def resampled_rows(sizes: list[int], paired: bool, count: int) -> list[list[np.ndarray]]:
    """The resamples that SciPy's bootstrap draws, found by bootstrapping the rows' own numbers."""
    drawn = []

    def keep(*rows, axis):
        drawn.extend(list(one) for one in zip(*rows, strict=True))
        return np.zeros(len(rows[0]))

    with np.errstate(all="ignore"):
        stats.bootstrap(
            [np.arange(size) for size in sizes],
            keep,
            n_resamples=count,
            batch=10,
            vectorized=True,
            paired=paired,
            method="percentile",
            rng=np.random.default_rng(0),
        )
    return drawn


def interval(values: list) -> np.ndarray:
    return np.percentile(np.array(values), [2.5, 97.5], axis=0)


@pytest.mark.parametrize("kind", RUNS)
def test_every_number_of_a_comparison(kind):
    run = RUNS[kind]
    weights = run.chosen.weights, run.rejected.weights
    found = summary(run)["comparisons"]
    expected = samples_of(run)
    assert {(key, when) for key, states in found.items() for when in states} == set(expected)
    draws = resampled_rows([len(run.chosen), len(run.rejected)], run.paired, 999)
    assert len(draws) == 999
    for (key, when), samples in expected.items():
        state = found[key][when]
        upper, lower = map(repeated, samples, weights)
        again = numbers(upper, lower)
        resamples = []
        for rows in draws:
            both = [
                repeated(s[i], None if w is None else w[i])
                for s, w, i in zip(samples, weights, rows, strict=True)
            ]
            resamples.append(
                {
                    **numbers(*both),
                    "margins": [
                        quantile(both[0], p / 100) - quantile(both[1], p / 100) for p in (5, 25, 50, 75, 95)
                    ],
                    "upper": quantile(both[0], LEVELS),
                    "lower": quantile(both[1], LEVELS),
                }
            )
        assert state["resamples"] == 999
        for order in ("first", "second"):
            part = state[f"{order}_order"]
            sizes = np.array([r[f"{order}_size"] for r in resamples])
            assert part["violation"] == pytest.approx(again[f"{order}_size"], rel=1e-9, abs=1e-12)
            assert part["violation_rate"] == pytest.approx(again[f"{order}_rate"], rel=1e-9, abs=1e-9)
            assert part["violation_interval"] == pytest.approx(interval(sizes).tolist(), rel=1e-6, abs=1e-9)
            assert part["holds_in_resamples"] == pytest.approx((sizes < 1e-12).mean(), abs=0.002)
            assert part["holds"] == (again[f"{order}_size"] < 1e-12)
        assert state["wasserstein"]["value"] == pytest.approx(again["wasserstein"], rel=1e-9)
        ends = interval([r["wasserstein"] for r in resamples])
        assert state["wasserstein"]["interval"] == pytest.approx(ends.tolist(), rel=1e-9)
        ends = interval([r["margins"] for r in resamples])
        for i, p in enumerate((5, 25, 50, 75, 95)):
            margin = state["margins"][f"p{p}"]
            assert margin["value"] == pytest.approx(quantile(upper, p / 100) - quantile(lower, p / 100))
            assert margin["interval"] == pytest.approx(ends[:, i].tolist())
        for end, sample in (("upper", upper), ("lower", lower)):
            curve = state["curves"][end]
            assert curve["quantiles"] == quantile(sample, LEVELS).tolist()
            assert curve["band"] == pytest.approx(interval([r[end] for r in resamples]))


@pytest.mark.parametrize("kind", RUNS)
def test_changes_against_the_reference_and_accuracy(kind):
    run = RUNS[kind]
    found = summary(run)
    for side, answers in (("chosen", run.chosen), ("rejected", run.rejected)):
        change, w = found["changes"][side], answers.weights
        rewards = answers.policy - answers.reference
        draws = [rows for (rows,) in resampled_rows([len(rewards)], False, 999)]

        def mean(values, rows=slice(None), w=w):
            return np.average(values[rows], weights=None if w is None else w[rows])

        assert found["answers"][side] == len(rewards)
        assert change["log_probability_before"] == pytest.approx(mean(answers.reference))
        assert change["log_probability_after"] == pytest.approx(mean(answers.policy))
        assert change["change"]["value"] == pytest.approx(mean(rewards))
        assert change["change"]["interval"] == pytest.approx(interval([mean(rewards, d) for d in draws]))
        assert change["share_that_fell"]["value"] == pytest.approx(mean(rewards < 0))
        fell = interval([mean(rewards < 0, d) for d in draws])
        assert change["share_that_fell"]["interval"] == pytest.approx(fell)
        depths = np.array([max(0.0, -r if side == "chosen" else r) for r in rewards])
        for name, values in (("share", depths > 0), ("nats", depths)):
            wrong = change["wrong_side"][name]
            assert wrong["value"] == pytest.approx(mean(values))
            assert wrong["interval"] == pytest.approx(interval([mean(values, d) for d in draws]))
    assert ("accuracy" in found) == run.paired
    if run.paired:
        better = run.chosen.rewards > run.rejected.rewards
        w = run.chosen.weights
        assert found["accuracy"]["value"] == pytest.approx(np.average(better, weights=w))
        draws = [rows for (rows,) in resampled_rows([len(better)], False, 999)]
        ends = interval([np.average(better[d], weights=None if w is None else w[d]) for d in draws])
        assert found["accuracy"]["interval"] == pytest.approx(ends)


# --- Coverage -----------------------------------------------------------------------------------


def truth(mean: float, scale: float) -> dict[str, float]:
    """Of N(0, 1) over N(mean, scale^2), by integrating the normal quantile functions."""
    t = (np.arange(1_000_000) + 0.5) / 1_000_000
    gap = stats.norm.ppf(t) - (mean + scale * stats.norm.ppf(t))
    integral = np.cumsum(gap) / len(gap)
    return {
        "first_size": np.maximum(-gap, 0).mean(),
        "second_size": np.maximum(-integral, 0).mean(),
        "wasserstein": np.abs(gap).mean(),
        "p25": np.interp(0.25, t, gap),
        "p50": np.interp(0.5, t, gap),
    }


@pytest.mark.slow
# where a violation is next to none, 0 is an edge that no bootstrap knows of, and intervals are too short
@pytest.mark.parametrize(("mean", "scale"), [(0.5, 1.5), (-0.3, 0.6)])
def test_intervals_cover_the_truth_as_often_as_they_say(mean, scale, monkeypatch):
    # as many resamples as 95% intervals need; the number changes their noise, not their coverage
    monkeypatch.setattr(module, "MOST_RESAMPLES", 200)
    expected = truth(mean, scale)
    rng = np.random.default_rng(0)
    covered = dict.fromkeys(expected, 0)
    for _ in range(300):
        chosen = Answers(rng.normal(0, 1, 150), np.zeros(150))
        rejected = Answers(rng.normal(mean, scale, 150), np.zeros(150))
        found = compare(COMPARISONS["rewards"], Run("run", False, chosen, rejected))
        intervals = {
            "first_size": found["first_order"]["violation_interval"],
            "second_size": found["second_order"]["violation_interval"],
            "wasserstein": found["wasserstein"]["interval"],
            **{p: found["margins"][p]["interval"] for p in ("p25", "p50")},
        }
        for name, (low, high) in intervals.items():
            covered[name] += low <= expected[name] <= high
    assert all(0.90 <= count / 300 <= 0.99 for count in covered.values()), covered


# --- Words --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("upper", "lower", "first", "second"),
    [
        ([1, 2, 3], [0, 1, 2], "dominates rejected at every quantile", "dominates rejected to second order"),
        (
            [1, 2],
            [1, 2],
            "and rejected are equal at every quantile",
            "and rejected are equal at every quantile",
        ),
        ([0, 1, 2], [1, 2, 3], "fails at every quantile", "fails at every quantile"),
        ([0] + [9] * 7, [1] * 8, "fails below the 12th percentile", "fails below the 14th percentile"),
        ([1] * 8, [0] * 7 + [9], "fails above the 88th percentile", "fails above the 98th percentile"),
        ([1] * 4, [0, 2, 2, 0.5], "fails above the 50th percentile", "fails above the 88th percentile"),
        ([5, 1, 2, 6], [4, 0, 3, 5], "fails from the 25th to the 50th percentile", "dominates"),
        (
            [0, 2, 2, 0, 2, 2, 0.1, 2, 2, 9],
            [1] * 9 + [10],
            "fails below the 30th percentile and above the 90th percentile",
            "fails below the 59th percentile",
        ),
        ([1, 3, 1, 3, 1, 3], [0] + [2] * 5, "fails from the 17th to the 50th percentile", None),
        ([-1] + [1] * 999, [0] * 1000, "fails below the 0.1th percentile", None),
        ([1] * 1000, [0] * 999 + [2], "fails above the 99.9th percentile", None),
        ([1] * 50_000, [0] * 49_999 + [2], "fails above the 99.998th percentile", None),
        ([-1] + [1] * 49_999, [0] * 50_000, "fails below the 0.002th percentile", None),
    ],
)
def test_verdicts_in_words(upper, lower, first, second):
    steps = quantile_steps(*(torch.tensor(s, dtype=torch.float64) for s in (upper, lower)))
    for order, words in (("first", first), ("second", second)):
        found = verdict(COMPARISONS["rewards"], steps, order)
        assert words is None or words in found["verdict"], found
        assert found["verdict"].startswith("chosen ")
        assert found["holds"] == ("dominates" in found["verdict"])


def test_many_places_are_told_as_a_share():
    upper = torch.tensor([float(i) for i in range(20)])
    lower = upper + torch.tensor([1.5, -1.5] * 10).sort().values.sort().values
    wave = upper + torch.tensor([0.4, -0.4] * 10)
    found = verdict(COMPARISONS["rewards"], quantile_steps(upper, wave), "first")["verdict"]
    assert found.endswith("fails at 50% of the quantiles, all of them below the 95th percentile")
    assert not verdict(COMPARISONS["rewards"], quantile_steps(lower, upper), "first")["holds"]


def test_a_few_places_of_next_to_no_mass_are_not_told_as_nothing():
    upper = torch.arange(10_000.0)
    lower = upper - 0.4
    lower[[3000, 5000, 7000]] += 0.6
    found = verdict(COMPARISONS["rewards"], quantile_steps(upper, lower), "first")["verdict"]
    assert "at less than 0.1% of the quantiles, all of them from the 30th to the 70th percentile" in found


# Of the words of a verdict.
SHARE = re.compile(
    r"at (less than |more than )?([\d.]+)% of the quantiles, (spread over the whole range|all of them )"
)
PLACES = {
    r"at every quantile": lambda: ("0", "100"),
    r"below the ([\d.]+)\w\w percentile": lambda end: ("0", end),
    r"above the ([\d.]+)\w\w percentile": lambda begin: (begin, "100"),
    r"from the ([\d.]+)\w\w to the ([\d.]+)\w\w percentile": lambda begin, end: (begin, end),
    r"around the ([\d.]+)\w\w percentile": lambda middle: (middle, middle),
}


def rounding(number: str) -> Fraction:
    """Half of the last digit that a number shows."""
    return Fraction(1, 2 * 10 ** len(number.partition(".")[2]))


def places_of(words: str) -> list[tuple[str, str]]:
    """Begin and end of each, in percentiles."""
    found = []
    for part in words.split(" and "):
        ((ends, match),) = [(f, m) for pattern, f in PLACES.items() if (m := re.fullmatch(pattern, part))]
        found.append(ends(*match.groups()))
    return found


def failing_by_hand(upper, lower, masses, order: str) -> list[tuple[Fraction, Fraction]]:
    """Intervals of levels, in percentiles, with exact arithmetic: a loop over the steps of both functions."""
    edges = {Fraction(0)}
    functions = []
    for values, weights in zip((upper, lower), masses, strict=True):
        steps, level = [], Fraction(0)
        for value, weight in sorted(zip(values, weights, strict=True)):
            level += Fraction(weight, sum(weights))
            steps.append((level, Fraction(value)))
            edges.add(level)
        functions.append(steps)
    failing, integral = [], Fraction(0)
    for begin, end in itertools.pairwise(sorted(edges)):
        u, v = (next(value for level, value in steps if level >= end) for steps in functions)
        start, integral = integral, integral + (end - begin) * (u - v)
        if order == "first":
            bad = (begin, end) if u < v else None
        elif min(start, integral) >= 0:
            bad = None
        else:
            zero = begin + (end - begin) * start / (start - integral) if start != integral else begin
            bad = (begin if start < 0 else zero, end if integral < 0 else zero)
        if bad and failing and failing[-1][1] == bad[0]:
            bad = (failing.pop()[0], bad[1])
        failing += [bad] if bad else []
    return [(100 * begin, 100 * end) for begin, end in failing]


def assert_words_agree(words: str, failing: list[tuple[Fraction, Fraction]]) -> None:
    """Share and places are those of the failing levels, but for the rounding of what is shown."""
    share = sum(end - begin for begin, end in failing)
    told = SHARE.match(words)
    if told:
        bound, number, where = told.groups()
        shown = Fraction(number)
        if bound:
            assert (0 < share < shown) if bound == "less than " else (shown < share < 100), words
        else:
            assert 0 < shown < 100 and abs(share - shown) <= rounding(number), words
        named = [("0", "100")] if where.startswith("spread") else places_of(words[told.end() :])
        assert len(named) == 1, words
    else:
        named = places_of(words)
    ends = [[(Fraction(end), rounding(end) if end not in ("0", "100") else TINY) for end in p] for p in named]
    for begin, end in failing:  # all of them are within what is named
        assert any(b - rb <= begin and end <= e + re for (b, rb), (e, re) in ends), words
    if told:  # which is no wider than they are
        ((b, rb), (e, re)) = ends[0]
        assert abs(failing[0][0] - b) <= rb and abs(failing[-1][1] - e) <= re, words
    else:
        much = sum(e - b for (b, _), (e, _) in ends) - share
        assert much <= share / 100 + sum(rb + re for (_, rb), (_, re) in ends), words


TINY = Fraction(1, 10**7)


@pytest.mark.parametrize("order", ["first", "second"])
def test_words_agree_with_the_curves(order):
    """Random curves of all kinds: few steps and many, other sizes, masses; mostly failing, and hardly."""
    rng = np.random.default_rng(3)
    seen = Counter()
    for trial in range(600):
        n, m = (int(size) for size in 2 ** rng.uniform(0, 7, 2))
        m = n if trial % 2 else m
        spread = int(rng.choice([2, 8, 300]))
        upper = rng.integers(-spread, spread + 1, n)
        lower = rng.integers(-spread, spread + 1, m) + int(rng.integers(-2, 3))
        if trial % 3 == 0:  # near one another, so that many places fail
            upper = np.sort(rng.integers(0, 1000 * n, n))
            lower = upper + rng.integers(-3, 4, n) * rng.integers(0, 2, n)
        weighted = trial % 5 == 0
        masses = [rng.integers(1, 50 if weighted else 2, len(s)) for s in (upper, lower)]
        failing = failing_by_hand(upper.tolist(), lower.tolist(), [w.tolist() for w in masses], order)
        tensors = [torch.tensor(s, dtype=torch.float64) for s in (upper, lower)]
        weights = [torch.tensor(w, dtype=torch.float64) if weighted else None for w in masses]
        steps = quantile_steps(*tensors, upper_weights=weights[0], lower_weights=weights[1])
        found = verdict(COMPARISONS["rewards"], steps, order)["verdict"]
        words = found.partition(": fails ")[2]
        assert bool(words) == bool(failing), found
        if failing:
            assert_words_agree(words, failing)
            seen[re.sub(r"[\d.]+(%|\w\w)", "#", words)] += 1
    kinds = ["all of them", "every", "below", "above", "from", " and "]
    kinds += ["spread"] if order == "first" else []
    assert all(any(kind in words for words in seen) for kind in kinds), seen


def test_words_of_many_levels():
    """Rarer curves: thousands of steps, of which a few fail, all but a few, or few near an end."""
    rng = np.random.default_rng(4)
    n = 3000
    for bad in (1, 2, 3, 9, n // 100, n - 9, n - 2, n - 1, n):
        for within, middle in itertools.product((bad, min(n, bad + 3), min(n, 20 * bad), n), (0, 0.5, 1)):
            gap = np.ones(n, int)
            gap[int(middle * (n - within)) + rng.choice(within, bad, replace=False)] = -1
            upper = 10 * np.arange(n)
            tensors = [torch.tensor(s, dtype=torch.float64) for s in (upper, upper - gap)]
            words = verdict(COMPARISONS["rewards"], quantile_steps(*tensors), "first")["verdict"]
            levels = [Fraction(100 * int(i), n) for i in np.flatnonzero(gap < 0)]
            failing = [(level, level + Fraction(100, n)) for level in levels]
            assert_words_agree(words.partition(": fails ")[2], joined(failing))


def joined(intervals: list[tuple[Fraction, Fraction]]) -> list[tuple[Fraction, Fraction]]:
    merged: list[tuple[Fraction, Fraction]] = []
    for begin, end in intervals:
        if merged and merged[-1][1] == begin:
            begin = merged.pop()[0]
        merged.append((begin, end))
    return merged


@pytest.mark.parametrize(
    ("chosen", "rejected", "words"),
    [
        (1.0, -2.0, "chosen answers became more likely, rejected ones less likely"),
        (-1.0, -2.0, "both became less likely"),
        (1.0, 2.0, "both became more likely"),
        (-1.0, 1.0, "the wrong way round"),
        (0.0, 0.0, "neither clearly changed"),
    ],
)
def test_whether_both_became_less_likely(chosen, rejected, words):
    sides = [Answers(np.full(4, -5.0 + shift), np.full(4, -5.0)) for shift in (chosen, rejected)]
    assert words in summary(Run("run", True, *sides))["changes"]["verdict"]


def sides_of(chosen: list[float], rejected: list[float]) -> Run:
    """Answers with these rewards, as many times as make their mean clear."""
    sides = [np.array(rewards * 50) for rewards in (chosen, rejected)]
    return Run("run", True, *(Answers(rewards - 5.0, np.full(len(rewards), -5.0)) for rewards in sides))


@pytest.mark.parametrize(
    ("chosen", "rejected", "anchor", "words"),
    [
        (
            [-3.0, -1.0, 0.5, -2.0],
            [-4.0, -4.0, -4.0, 0.25],
            0.0,
            "75% of the chosen answers are less likely than under the base model, by 2 nats on average, and "
            "25% of the rejected ones more likely, by 0.25: the model moves away from what it should prefer "
            "(likelihood displacement); `aot_anchor`, here 0, is the weight of what holds chosen answers "
            "above the base model",
        ),
        (
            [-3.0] * 4,
            [-4.0] * 4,
            None,
            "all of the chosen answers are less likely than under the base model, by 3 nats on average, and "
            "none of the rejected ones more likely: the model moves away from what it should prefer "
            "(likelihood displacement)",
        ),
        (
            [-3.0] * 4,
            [1.5] * 4,
            1.0,
            "all of the chosen answers are less likely than under the base model, by 3 nats on average, and "
            "all of the rejected ones more likely, by 1.5: the model moves away from what it should prefer "
            "(likelihood displacement), although `aot_anchor: 1` asks for nothing but the opposite",
        ),
        (
            [3.0, 3.0, 3.0, -0.001],
            [-4.0] * 4,
            0.0,
            "25% of the chosen answers are less likely than under the base model, by less than 0.01 nats "
            "on average, and none of the rejected ones more likely",
        ),
        (
            [1.0] * 4,
            [-1.0] * 4,
            0.0,
            "none of the chosen answers are less likely than under the base model, and none of the rejected "
            "ones more likely",
        ),
    ],
)
def test_answers_on_the_wrong_side_of_the_base_model(chosen, rejected, anchor, words):
    settings = {} if anchor is None else {"aot_anchor": anchor}
    numbers = report([sides_of(chosen, rejected)], source={}, settings=settings)
    changes = numbers["runs"]["run"]["changes"]
    assert changes["base_model"] == words
    assert changes["displaced"] is ("displacement" in words)


def test_the_course_of_displacement_in_words():
    rates = (0.0, 0.05, 0.4, 0.31)
    history = [
        {
            "step": 10 * i + 1,
            "loss": 0.6,
            "dominance/chosen_below_base_rate": rate,
            "dominance/chosen_below_base": 2 * rate,
            "dominance/rejected_above_base_rate": 0.0004 * i,
            "dominance/rejected_above_base": 0.0,
            "dominance/rank_displacement": 0.2 - 0.05 * i,
        }
        for i, rate in enumerate(rates)
    ]
    history.append({"step": 31, "eval_dominance/chosen_below_base_rate": 0.9})
    numbers = report([RUNS["pairs"]], source={}, settings={"aot_entropy": 0.5}, history=history)
    assert numbers["course"] == [
        "chosen answers less likely than under the base model: none in step 1, 31% (by 2 nats on average) "
        "in step 31; the most, 40%, in step 21",
        "rejected answers more likely than under the base model: none in step 1, 0.1% (by less than 0.01 "
        "nats on average) in step 31",
        "answers were compared with others 20% of the ranks away in step 1, 5% of the ranks away in step 31 "
        "(0%: the sort; a third: all with all)",
    ]
    assert report([RUNS["pairs"]], source={}, settings={}, history=[{"step": 1, "loss": 0.5}])["course"] == []


def test_a_change_within_its_interval_is_none():
    noise = np.random.default_rng(0).normal(0, 1, 50)
    noise -= noise.mean()
    sides = [Answers(-5 + noise + shift, np.full(50, -5.0)) for shift in (-1e-6, 1e-6)]
    changes = summary(Run("run", True, *sides))["changes"]
    assert changes["verdict"] == "neither clearly changed"
    for side in ("chosen", "rejected"):
        low, high = changes[side]["change"]["interval"]
        assert low < 0 < high


# --- The whole ----------------------------------------------------------------------------------


def test_the_report_is_json_with_a_version_and_nothing_that_is_no_number():
    history = [{"step": 1, "loss": 0.5, "grad_norm": float("nan"), "note": "text"}]
    whole = report([RUNS["pairs"]], source={"kind": "data"}, settings={}, history=history)
    assert json.loads(json.dumps(whole, allow_nan=False)) == whole
    assert whole["schema_version"] == 1
    assert whole["history"] == [{"step": 1, "loss": 0.5}]
    assert whole["levels"] == LEVELS.tolist()
    assert whole["bootstrap"]["confidence"] == 0.95


def test_the_same_answers_give_the_same_report():
    assert summary(RUNS["labels"]) == summary(make_run(60, 45, False))


def test_answers_of_one_label_or_not_finite_are_no_report():
    for count in (0, 1):
        few = Answers(np.zeros(count), np.zeros(count))
        with pytest.raises(ValueError, match=f"run: {count} rejected answers; a report needs two or more"):
            summary(Run("run", False, RUNS["labels"].chosen, few))
    infinite = Answers(np.array([np.inf, 0.0]), np.zeros(2))
    with pytest.raises(ValueError, match="run: 1 log-probabilities of chosen answers are not finite"):
        summary(Run("run", False, infinite, RUNS["labels"].rejected))
