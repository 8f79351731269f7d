"""The north-west corner: transport between two sorted samples, and its potentials.

A staircase goes through the matrix of costs from the first pair to the last, one step in one sample at a
time, in the order in which masses are used up. Where the cost is a convex function of the difference, the
plan on it is the one of least cost, and its potentials are those of the dual.
"""

import torch
from torch import Tensor


class Staircase:
    """The staircase of two samples with the masses a (n,) and b (m,), positive and each of sum 1."""

    def __init__(self, a: Tensor, b: Tensor):
        self._shape = len(a), len(b)
        ends = torch.cat([a.cumsum(0)[:-1], b.cumsum(0)[:-1]])
        ends, order = ends.sort(stable=True)
        self._is_upper = order < len(a) - 1  # of each step, whether it is one in the first sample
        start = order.new_zeros(1)
        self._i = torch.cat([start, self._is_upper.long().cumsum(0)])
        self._j = torch.cat([start, (~self._is_upper).long().cumsum(0)])
        self._mass = torch.cat([ends, a.sum()[None]]).diff(prepend=a.new_zeros(1)).clamp(min=0)

    @property
    def plan(self) -> Tensor:
        """The plan on the staircase, (n, m): of two sorted samples, the sort's."""
        plan = self._mass.new_zeros(self._shape)
        plan[self._i, self._j] = self._mass
        return plan

    def transport(self, cost: Tensor) -> Tensor:
        """What the plan costs, a scalar."""
        return (self._mass * cost[self._i, self._j]).sum()

    def column_potential(self, cost: Tensor) -> Tensor:
        """g (m,): with an f, f_i + g_j = C_ij along the staircase."""
        along = cost[self._i, self._j]
        return torch.cat([along[:1], along.diff()[~self._is_upper]]).cumsum(0)


def transforms(cost: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """f (n,) and g (m,), the largest with f_i + g_j <= C_ij, g nowhere below the given one (c-transforms)."""
    f = (cost - g).min(dim=1).values
    return f, (cost - f[:, None]).min(dim=0).values
