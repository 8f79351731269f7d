"""Entropic couplings: which of one sample are compared with which of the other, and how much.

A coupling of the empirical measures a (n values) and b (m values) is a matrix of masses (n, m) with these
marginals. The sort is the one of least cost, for a convex cost; the product a x b compares all with all. The
entropic one, argmin <gamma, C> + eps KL(gamma | a x b) with the cost C_ij = h(u_i - v_j), lies between them:
eps towards 0 is optimal transport, eps towards infinity the product.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from axolotl_aot.dominance.checks import common_dtype, masses, require_sample
from axolotl_aot.dominance.penalties import Cost, cost_function
from axolotl_aot.dominance.plans import entropic_plan, relative_entropy

RANK_DISPLACEMENT = "dominance/rank_displacement"  # under which a coupling's displacement is logged

BLOCK = 2_048  # a plan of more than BLOCK x BLOCK entries (32 MB) is found on random blocks
BLOCK_SEED = 0  # the same blocks on all processes


class Coupled(NamedTuple):
    """Two samples compared under a coupling.

    loss: <gamma, C> + entropy KL(gamma | a x b), a scalar, differentiable in both samples with gamma held
    fixed, which is the derivative of the minimum over gamma (envelope theorem). displacement: by how much the
    ranks of what is compared differ, as shares of the masses: the mean under gamma, 0 for the sort of as many
    values of equal mass, 1/3 for the product of large samples. plans: how many were found; unconverged: how
    many of them not to the tolerance.
    """

    loss: Tensor
    displacement: Tensor
    unconverged: int
    plans: int


class Block(NamedTuple):
    """A part of two samples that is coupled alone. upper, lower: indices; share: of the whole loss."""

    upper: Tensor
    lower: Tensor
    share: float


def coupled(
    upper: Tensor,
    lower: Tensor,
    *,
    beta: float,
    entropy: float,
    penalty: str = "logistic",
    label_smoothing: float = 0.0,
    upper_weights: Tensor | None = None,
    lower_weights: Tensor | None = None,
) -> Coupled:
    """The entropic coupling of two samples, with the loss of `dominance_loss` for an entropy above 0.

    Arguments and errors as there; an entropy of 0 is an error, too.
    """
    _require_entropy(entropy)
    sides = []
    dtype = common_dtype(upper, lower)
    for name, sample, weights in (("upper", upper, upper_weights), ("lower", lower, lower_weights)):
        require_sample(name, sample)
        mass = masses(f"{name}_weights", weights, sample)
        values, order = torch.sort(sample.to(dtype), stable=True)
        sides.append((values, mass[order] / mass.sum()))
    (u, a), (v, b) = sides
    return couple(u, v, a, b, cost_function(beta, penalty, label_smoothing), entropy)


def couple(
    upper: Tensor, lower: Tensor, upper_mass: Tensor, lower_mass: Tensor, h: Cost, entropy: float
) -> Coupled:
    """Two samples, each ascending, compared under their entropic coupling.

    upper, lower: (n,) and (m,), in nats. upper_mass, lower_mass: non-negative, each of sum 1. h: of the
    differences. entropy: above 0.

    Of many values random blocks are compared, each with masses of sum 1; memory is that of one block.
    """
    gradients = torch.zeros_like(upper), torch.zeros_like(lower)
    value, displacement = upper.new_zeros(()), upper.new_zeros(())
    ranks = [mass.cumsum(0) - mass / 2 for mass in (upper_mass, lower_mass)]
    unconverged = plans = 0
    for block in blocks(upper_mass, lower_mass):
        u, v = (x.detach()[i].requires_grad_() for x, i in ((upper, block.upper), (lower, block.lower)))
        a, b = (mass[i] / mass[i].sum() for mass, i in ((upper_mass, block.upper), (lower_mass, block.lower)))
        with torch.enable_grad():
            costs = h(u[:, None] - v)
            plan = entropic_plan(costs, a, b, entropy)
            mass = plan.mass.to(costs.dtype)
            transport = (mass * costs).sum()
        for total, gradient, i in zip(
            gradients, torch.autograd.grad(transport, (u, v)), (block.upper, block.lower), strict=True
        ):
            total[i] += block.share * gradient
        value = value + block.share * transport.detach()
        if math.isfinite(entropy):
            value = value + block.share * entropy * relative_entropy(plan.mass, a, b).to(value)
        apart = (ranks[0][block.upper][:, None] - ranks[1][block.lower]).abs()
        displacement = displacement + block.share * (plan.mass * apart).sum().to(value)
        plans, unconverged = plans + 1, unconverged + (not plan.converged)
    # a number with these derivatives: the blocks' own graphs are gone by now
    slopes = sum((g * (x - x.detach())).sum() for g, x in zip(gradients, (upper, lower), strict=True))
    return Coupled(value + slopes, displacement, unconverged, plans)


def blocks(upper_mass: Tensor, lower_mass: Tensor) -> Iterator[Block]:
    """Both samples in random parts, small enough for a plan each; one part where all is small.

    Values of mass 0 are in none. The parts are drawn with a seed of their own: they are the same on all
    processes, and every time.
    """
    upper, lower = (mass.nonzero()[:, 0] for mass in (upper_mass, lower_mass))
    n, m = len(upper), len(lower)
    parts = min(n, m, math.ceil(math.sqrt(n * m) / BLOCK))
    if parts <= 1:
        yield Block(upper, lower, 1.0)
        return
    generator = torch.Generator().manual_seed(BLOCK_SEED)
    orders = [i[torch.randperm(len(i), generator=generator).to(i.device)] for i in (upper, lower)]
    for upper, lower in zip(*(order.tensor_split(parts) for order in orders), strict=True):
        share = (upper_mass[upper].sum() + lower_mass[lower].sum()).item() / 2
        yield Block(upper.sort().values, lower.sort().values, share)


def _require_entropy(entropy: float) -> None:
    if not entropy > 0:
        hint = "" if entropy else ": the sort is dominance_loss's own"
        raise ValueError(f"entropy must be above 0, got {entropy}{hint}")
