"""Means over seeds, with 95% bootstrap intervals over the seeds. Imports NumPy and SciPy."""

import math
from typing import NamedTuple

import numpy as np
from scipy import stats

LEVEL = 0.95
RESAMPLES = 20_000


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


def expanded(level: float, count: int) -> float:
    """The nominal level at which a percentile interval of a mean of few values has about this level.

    Resamples of n values vary by sqrt((n - 1) / n) too little, and not as Student's t does (Hesterberg 2015,
    "What teachers should know about the bootstrap", expanded percentile interval).
    """
    reach = math.sqrt(count / (count - 1)) * stats.t.ppf((1 + level) / 2, count - 1)
    return 2 * stats.norm.cdf(reach) - 1


def estimate(values: np.ndarray) -> Estimate:
    """Of values by seed, shape (n,)."""
    low = high = values.mean()
    if np.ptp(values):
        found = stats.bootstrap(
            (values,),
            np.mean,
            confidence_level=expanded(LEVEL, len(values)),
            n_resamples=RESAMPLES,
            method="percentile",
            rng=np.random.default_rng(0),
        )
        low, high = found.confidence_interval
    return Estimate(values.mean().item(), float(low), float(high), int((values > 0).sum()), len(values))
