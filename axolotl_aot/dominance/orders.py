"""Orders of dominance, by the gap Q_U - Q_V between two quantile functions."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


def _first_order(gap: Tensor, mass: Tensor) -> Tensor:
    return gap


def _first_order_violation(gap: Tensor, mass: Tensor) -> tuple[Tensor, Tensor]:
    shortfall = F.relu(-gap)
    return (mass * shortfall).sum(), (mass * (shortfall > 0)).sum()


def _second_order(gap: Tensor, mass: Tensor) -> Tensor:
    return torch.cumsum(mass * gap, dim=0)  # integral of Q_U - Q_V from 0 to each step's end


def _second_order_violation(gap: Tensor, mass: Tensor) -> tuple[Tensor, Tensor]:
    end = without_rounding(_second_order(gap, mass), gap, mass)
    start = torch.cat([end.new_zeros(1), end[:-1]])
    # Between a step's ends the integral is linear: the part of the step where it is negative, and its
    # mean there.
    depth = torch.minimum(start, end).clamp(max=0).abs()
    crosses = (start < 0) != (end < 0)
    share = torch.where(crosses, depth / (end - start).abs(), ((start < 0) & (end < 0)).to(mass))
    mean = torch.where(crosses, depth / 2, -(start + end) / 2)
    return (mass * share * mean).sum(), (mass * share).sum()


def without_rounding(argument: Tensor, gap: Tensor, mass: Tensor) -> Tensor:
    """An order's argument, 0 where it is no more than the rounding of the sum that it is.

    Where the integral comes back to 0, as it does for samples with ties, a sum may end a little below.
    """
    error = 4 * torch.finfo(gap.dtype).eps * len(gap) ** 0.5 * torch.cumsum(mass * gap.abs(), dim=0)
    return torch.where(argument.abs() <= error, torch.zeros_like(argument), argument)


class Order(NamedTuple):
    """An order of dominance, of the gap Q_U - Q_V on steps of the given mass, each of shape (k,).

    argument: what must not be negative at any step's end, shape (k,). violation: the integral over p in
    [0, 1] of its negative part, and the measure of the p where it is negative; scalars.
    """

    argument: Callable[[Tensor, Tensor], Tensor]
    violation: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


DOMINANCES: dict[str, Order] = {
    "first": Order(_first_order, _first_order_violation),
    "second": Order(_second_order, _second_order_violation),
}
