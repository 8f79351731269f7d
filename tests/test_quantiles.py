"""Quantiles and margins against a count of the sorted values."""

from fractions import Fraction

import numpy as np
import pytest

from axolotl_aot.quantiles import MARGIN_METRICS, PERCENTILES, margins, quantiles

RNG = np.random.default_rng(0)


def by_counting(sample: np.ndarray, percentile: int, counts: np.ndarray) -> float:
    """The least value that at least this percentage of the sample does not exceed, in whole numbers."""
    order = np.argsort(sample)
    seen = 0
    for i in order:
        seen += int(counts[i])
        if Fraction(seen, int(counts.sum())) >= Fraction(percentile, 100):
            return sample[i]
    raise AssertionError


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("n", [1, 2, 19, 20, 64, 100, 257])  # at 20 and 100 levels fall on steps
def test_quantiles_are_those_of_the_definition(n, weighted):
    sample = RNG.normal(size=n)
    counts = RNG.integers(1, 5, size=n) if weighted else np.ones(n, dtype=int)
    found = quantiles(sample, np.array(PERCENTILES) / 100, counts.astype(float) if weighted else None)
    assert found.tolist() == [by_counting(sample, p, counts) for p in PERCENTILES]


def test_margins_are_differences_of_quantiles_of_any_two_sizes():
    upper, lower = RNG.normal(size=33), RNG.normal(size=20)
    ones = [np.ones(33, dtype=int), np.ones(20, dtype=int)]
    expected = [by_counting(upper, p, ones[0]) - by_counting(lower, p, ones[1]) for p in PERCENTILES]
    assert margins(upper, lower).tolist() == expected


def test_names_of_the_metrics():
    assert {p: f"dominance/margin_p{p}" for p in (5, 25, 50, 75, 95)} == MARGIN_METRICS
