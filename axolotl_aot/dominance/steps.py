"""Two quantile functions on one grid, the common refinement of their steps."""

from typing import NamedTuple

import torch
from torch import Tensor

from axolotl_aot.dominance.checks import common_dtype, masses, require_choice, require_sample
from axolotl_aot.dominance.sorting import SORTS


class QuantileSteps(NamedTuple):
    """Q_U and Q_V on the common refinement of their steps; each of shape (k,), k <= n + m.

    mass: length of each step, non-negative, sums to 1. upper, lower: the two quantile functions there.
    """

    mass: Tensor
    upper: Tensor
    lower: Tensor


def quantile_steps(
    upper: Tensor,
    lower: Tensor,
    *,
    sort: str = "hard",
    soft_sort_strength: float | None = None,
    upper_weights: Tensor | None = None,
    lower_weights: Tensor | None = None,
) -> QuantileSteps:
    """The quantile functions of two samples on one grid; arguments and errors as `dominance_loss`.

    The coupling that pairs both functions at the same t is the optimal transport plan between the two
    empirical measures for every convex cost of the difference (the paper's theorem 1).
    """
    require_choice("sort", sort, SORTS)
    if soft_sort_strength is not None and not soft_sort_strength > 0:
        raise ValueError(f"soft_sort_strength must be positive, got {soft_sort_strength}")
    require_sample("upper", upper)
    require_sample("lower", lower)
    dtype = common_dtype(upper, lower)
    u, v = SORTS[sort](upper.to(dtype), lower.to(dtype), soft_sort_strength)

    n, m = len(upper), len(lower)
    if upper_weights is None and lower_weights is None:
        if n == m:  # the common case needs no merging
            mass = torch.full((n,), 1 / n, dtype=dtype, device=upper.device)
            return QuantileSteps(mass, u.values, v.values)
        # In units of 1 / (n m) both grids are whole numbers, so that equal edges compare equal.
        upper_edges = torch.arange(m, n * m + 1, m, device=upper.device)
        lower_edges = torch.arange(n, n * m + 1, n, device=upper.device)
    else:
        upper_edges = masses("upper_weights", upper_weights, upper)[u.order].cumsum(0)
        lower_edges = masses("lower_weights", lower_weights, lower)[v.order].cumsum(0)
        upper_edges, lower_edges = upper_edges / upper_edges[-1], lower_edges / lower_edges[-1]

    edges = torch.cat([upper_edges, lower_edges]).sort().values
    mass = edges.diff(prepend=edges.new_zeros(1)).double() / edges[-1]
    upper_index = torch.searchsorted(upper_edges, edges)  # the step that ends at or after the edge
    lower_index = torch.searchsorted(lower_edges, edges)
    return QuantileSteps(mass.to(dtype), u.values[upper_index], v.values[lower_index])
