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
    end = _second_order(gap, mass)
    start = torch.cat([end.new_zeros(1), end[:-1]])
    # Between a step's ends the integral is linear: the part of the step where it is negative, and its
    # mean there.
    depth = torch.minimum(start, end).clamp(max=0).abs()
    crosses = (start < 0) != (end < 0)
    share = torch.where(crosses, depth / (end - start).abs(), ((start < 0) & (end < 0)).to(mass))
    mean = torch.where(crosses, depth / 2, -(start + end) / 2)
    return (mass * share * mean).sum(), (mass * share).sum()


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
