"""The entropic plan of a matrix of costs (Cuturi, "Sinkhorn Distances", NeurIPS 2013, arXiv 1306.0895)."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from axolotl_aot.dominance.corner import Staircase, transforms
from axolotl_aot.dominance.dual import Dual

# Of the plan's marginals, the sum of the absolute differences, by the type of the costs; in float64 so small
# that differences of losses are exact, too.
TOLERANCES = {torch.float32: 1e-6, torch.float64: 1e-11}
ROUGH = 0.1  # the same for an entropy on the way, by the smallest mass: none may be in a wrong place by then
ENTROPY_STEP = 4.0  # from one entropy on the way to the next
MAX_ENTROPIES = 20  # on the way


class Plan(NamedTuple):
    """A coupling. mass: (n, m), non-negative, with exactly the marginals that were asked for.

    converged: whether the iterations came within `TOLERANCES` of them.
    """

    mass: Tensor
    converged: bool


def entropic_plan(cost: Tensor, upper_mass: Tensor, lower_mass: Tensor, entropy: float) -> Plan:
    """The plan of least <gamma, C> + entropy KL(gamma | a x b).

    cost: (n, m). upper_mass, lower_mass: (n,) and (m,), positive, each of sum 1. entropy: above 0, in units
    of the cost; infinity gives the product.
    """
    tolerance = TOLERANCES[cost.dtype]
    cost, a, b = (t.detach().double() for t in (cost, upper_mass, lower_mass))
    if math.isinf(entropy):
        return Plan(a[:, None] * b, True)
    if len(b) > len(a):  # the dual is one of the columns' potentials: of the fewer ones
        transposed = _entropic_plan(cost.T.contiguous(), b, a, entropy, tolerance)
        return transposed._replace(mass=transposed.mass.T)
    return _entropic_plan(cost, a, b, entropy, tolerance)


def _entropic_plan(cost: Tensor, a: Tensor, b: Tensor, entropy: float, tolerance: float) -> Plan:
    """From the north-west corner, the solution without entropy where the cost is convex and both samples
    are sorted; elsewhere through a few larger entropies (Schmitzer, arXiv 1610.06519).
    """
    stairs = Staircase(a, b)
    f, g = transforms(cost, stairs.column_potential(cost))
    rough = ROUGH * min(a.min(), b.min()).item()
    gap = (stairs.transport(cost) - f @ a - g @ b).item()
    for stage in _entropies(entropy, gap):
        dual = Dual(cost, a, b, f, g, stage)
        converged = dual.ascend(tolerance if stage == entropy else rough)
        if stage != entropy:
            f, g = transforms(cost, dual.potentials[1])
    mass = with_marginals(dual.plan, a, b)
    if not converged:  # the corner's own plan may be the better one
        sort = with_marginals(stairs.plan, a, b)
        mass = min((mass, sort), key=lambda m: (m * cost).sum() + entropy * relative_entropy(m, a, b))
    return Plan(mass, converged)


def _entropies(entropy: float, gap: float) -> list[float]:
    """The entropies on the way to one: from the first as large as the duality gap of the start."""
    if not gap > entropy:
        return [entropy]
    steps = math.ceil(min(MAX_ENTROPIES, math.log(gap / entropy, ENTROPY_STEP)))
    return [*(entropy * (gap / entropy) ** (k / steps) for k in range(steps, 0, -1)), entropy]


def relative_entropy(plan: Tensor, upper_mass: Tensor, lower_mass: Tensor) -> Tensor:
    """KL(plan | a x b), a scalar in nats."""
    product = upper_mass[:, None] * lower_mass
    return torch.xlogy(plan, plan / product.clamp_min(torch.finfo(plan.dtype).tiny)).sum()


def with_marginals(plan: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """The plan with exactly the marginals a and b (Altschuler et al., arXiv 1705.09634, algorithm 2)."""
    tiny = torch.finfo(plan.dtype).tiny
    plan = plan * (a / plan.sum(1).clamp_min(tiny)).clamp(max=1)[:, None]
    plan = plan * (b / plan.sum(0).clamp_min(tiny)).clamp(max=1)
    rest_a, rest_b = (a - plan.sum(1)).clamp(min=0), (b - plan.sum(0)).clamp(min=0)
    total = rest_a.sum()
    return plan if total <= 0 else plan + rest_a[:, None] * rest_b / total
