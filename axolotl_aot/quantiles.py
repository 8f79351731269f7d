"""Quantile curves of samples, as NumPy arrays.

Imports NumPy only, and nothing of the package.
"""

import numpy as np

PERCENTILES = (5, 25, 50, 75, 95)  # at which margins are told
MARGIN_METRICS = {percentile: f"dominance/margin_p{percentile}" for percentile in PERCENTILES}


def quantiles(sample: np.ndarray, levels: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """The quantile function of an empirical measure at levels t: the least value with F(value) >= t.

    Args:
        sample: shape (n,).
        levels: in [0, 1], shape (k,).
        weights: non-negative masses, shape (n,); uniform where None.

    Returns:
        Shape (k,), in the sample's unit.
    """
    return np.quantile(sample, levels, method="inverted_cdf", weights=weights)


def margins(
    upper: np.ndarray,
    lower: np.ndarray,
    upper_weights: np.ndarray | None = None,
    lower_weights: np.ndarray | None = None,
) -> np.ndarray:
    """By how much the quantile function of `upper` (n,) exceeds that of `lower` (m,) at `PERCENTILES`.

    The paper's figure 1 shows this margin between quantiles (arXiv 2406.05882). Returns shape
    (len(PERCENTILES),), in the samples' unit.
    """
    levels = np.array(PERCENTILES) / 100
    return quantiles(upper, levels, upper_weights) - quantiles(lower, levels, lower_weights)
