"""Sorts of two samples of rewards, differentiable: exact, or soft.

The soft sort is Blondel et al., "Fast Differentiable Sorting and Ranking", ICML 2020, arXiv 2002.08871, with
quadratic regularisation.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from scipy.optimize import isotonic_regression
from torch import Tensor


class Sorted(NamedTuple):
    """A sample, ascending, and the index in the sample that each rank came from; each of shape (n,)."""

    values: Tensor
    order: Tensor


def _hard_sort(upper: Tensor, lower: Tensor, strength: float | None) -> tuple[Sorted, Sorted]:
    # stable: equal rewards keep their order, so that a run can be repeated to the last digit
    upper_order, lower_order = (torch.sort(sample, stable=True) for sample in (upper, lower))
    return Sorted(*upper_order), Sorted(*lower_order)


def _soft_sort(upper: Tensor, lower: Tensor, strength: float | None) -> tuple[Sorted, Sorted]:
    """Each sample with its neighbours pulled together to 1 / strength where they lie further apart.

    Without a strength the distance comes from the samples' spread, see `_default_spacings`.
    """
    u, v = _hard_sort(upper, lower, None)
    if strength is None:
        upper_spacing, lower_spacing = _default_spacings(u.values, v.values)
    else:
        upper_spacing = lower_spacing = torch.tensor(1 / strength, dtype=torch.float64)
    return (
        Sorted(_project(u.values, upper_spacing), u.order),
        Sorted(_project(v.values, lower_spacing), v.order),
    )


def _project(w: Tensor, spacing: Tensor) -> Tensor:
    """Projection of z = (1, ..., n) * spacing on the permutahedron of the sorted sample w, shape (n,).

    It is z - v, v the isotonic regression of z - w (Blondel et al., eq. 4 and proposition 3): v is
    constant on blocks, on each the mean of z - w. So each value is its block's mean of w plus z's offset
    from its own mean there, and the derivative by w averages over blocks (proposition 4).
    """
    spacing = spacing.to("cpu", torch.float64)
    z = torch.arange(1, len(w) + 1) * spacing.detach()
    fit = isotonic_regression((z - w.detach().to("cpu", torch.float64)).numpy())
    sizes = torch.from_numpy(fit.blocks).diff()
    block = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
    # z minus its block's mean, without the cancellation of large numbers at a small strength
    centre = (torch.from_numpy(fit.blocks[:-1]) + (sizes - 1).double() / 2)[block]
    offset = ((torch.arange(len(w)) - centre) * spacing).to(w)
    block, sizes = block.to(w.device), sizes.to(w.device)
    means = w.new_zeros(len(sizes)).index_add(0, block, w) / sizes
    return means[block] + offset


# Allowed distance of neighbours, by that of evenly spaced ones. At 2 the tails alone are pulled in: of 64
# normal values a third moves, and what is learnt stays as good as with the hard sort. At 1 nearly all values
# move, their gradients are averaged over large blocks, and what is learnt is worse.
SLACK = 2


def _default_spacings(u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Distances of neighbours in the sorted samples u (n,) and v (m,) that the soft sort leaves alone.

    They are `SLACK` times those in evenly spaced samples of the same spread. The spread is D, the mean
    distance between two values of the same sample (Gini's mean difference), pooled over both samples with
    n - 1 and m - 1 degrees of freedom, as a variance is. Evenly spaced values have D = spacing (n + 1) / 3.

    One D for both: where as many u lie above as many v, rank by rank, they still do after the same pull
    (isotonic regression is monotone); two spreads would make a violation where there is none. D is a
    sum over all values, so its derivative, which the loss's gradient needs, falls on all of them alike
    and not on a few, as that of a quartile would.
    """
    total = u.new_zeros(())
    for w in (u, v):
        below = torch.arange(1, len(w), device=w.device)  # values below each gap between neighbours
        pairs = below * (len(w) - below)  # whose distance the gap is a part of
        total = total + 2 / len(w) * (pairs * w.diff()).sum()
    spread = total / max(1, len(u) + len(v) - 2)  # samples of one value each have no spread, nor a use for it
    return SLACK * 3 * spread / (len(u) + 1), SLACK * 3 * spread / (len(v) + 1)


Sort = Callable[[Tensor, Tensor, float | None], tuple[Sorted, Sorted]]

# By the names that `aot_sort` takes; of upper and lower sample and the soft sort's strength.
SORTS: dict[str, Sort] = {"hard": _hard_sort, "soft": _soft_sort}
