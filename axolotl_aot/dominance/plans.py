"""The entropic plan of a matrix of costs (Cuturi, "Sinkhorn Distances", NeurIPS 2013, arXiv 1306.0895)."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

# Of the plan's marginals, the sum of the absolute differences, by the type of the costs.
TOLERANCES = {torch.float32: 1e-6, torch.float64: 1e-9}
MAX_ITERATIONS = 200
CHECK_EVERY = 5  # iterations
MAX_NEWTON_STEPS = 50
MAX_HALVINGS = 30  # of a step of Newton's that is too long
ABSORB = 30.0  # scalings beyond exp(this) are put into the potentials, so that none overflows
TINY = 1e-300  # in place of a sum of masses that have all vanished


class Plan(NamedTuple):
    """A coupling. mass: (n, m), non-negative, with exactly the marginals that were asked for.

    converged: whether the iterations came within `TOLERANCES` of them.
    """

    mass: Tensor
    converged: bool


def entropic_plan(
    cost: Tensor, upper_mass: Tensor, lower_mass: Tensor, entropy: float, tolerance: float | None = None
) -> Plan:
    """The plan of least <gamma, C> + entropy KL(gamma | a x b): Sinkhorn's iterations, then Newton's steps.

    cost: (n, m). upper_mass, lower_mass: (n,) and (m,), each of sum 1; values of mass 0 have no part in it.
    entropy: above 0, in units of the cost; infinity gives the product. tolerance: by default that of
    `TOLERANCES`.

    The scalings are kept in the log-domain where they grow large (Schmitzer, arXiv 1610.06519), and begin
    with the dual potentials of the north-west corner, which are the solution for a vanishing entropy where
    the cost is a convex function of the difference and both samples are sorted.
    """
    tolerance = tolerance or TOLERANCES[cost.dtype]
    cost, a, b = (t.detach().double() for t in (cost, upper_mass, lower_mass))
    if math.isinf(entropy):
        return Plan(a[:, None] * b, True)
    rows, columns = a > 0, b > 0
    if not (rows.all() and columns.all()):
        inner = entropic_plan(cost[rows][:, columns], a[rows], b[columns], entropy, tolerance)
        mass = cost.new_zeros(cost.shape)
        mass[torch.outer(rows, columns)] = inner.mass.flatten()
        return Plan(mass, inner.converged)
    _, g = _corner_potentials(cost, a, b)
    # of a cost that is not convex f + g may exceed it: so the largest that do not are taken (c-transforms)
    f = (cost - g).min(dim=1).values
    g = (cost - f[:, None]).min(dim=0).values
    f, g, converged = _sinkhorn(cost, f, g, a, b, entropy, tolerance)
    if not converged:
        f, g, converged = _newton(cost, f, g, a, b, entropy, tolerance)
    mass = _with_marginals(_kernel(cost, f, g, a, b, entropy), a, b)
    if not converged:
        # with next to no entropy the iterations hardly move, and the corner's own plan may be the better one
        corner = _corner_plan(a, b)
        mass = min((mass, corner), key=lambda m: (m * cost).sum() + entropy * relative_entropy(m, a, b))
    return Plan(mass, converged)


def relative_entropy(plan: Tensor, upper_mass: Tensor, lower_mass: Tensor) -> Tensor:
    """KL(plan | a x b), a scalar in nats."""
    product = upper_mass[:, None] * lower_mass
    return torch.xlogy(plan, plan / product.clamp_min(torch.finfo(plan.dtype).tiny)).sum()


def _sinkhorn(
    cost: Tensor, f: Tensor, g: Tensor, a: Tensor, b: Tensor, entropy: float, tolerance: float
) -> tuple[Tensor, Tensor, bool]:
    """Potentials by Sinkhorn's iterations from given ones, and whether they came to the tolerance."""
    kernel = _kernel(cost, f, g, a, b, entropy)
    x, y = torch.ones_like(a), torch.ones_like(b)
    error = math.inf
    for iteration in range(MAX_ITERATIONS):
        x = a / (kernel @ y).clamp_min(TINY)
        y = b / (kernel.T @ x).clamp_min(TINY)
        if iteration % CHECK_EVERY:
            continue
        error = (x * (kernel @ y) - a).abs().sum().item()
        if error < tolerance:
            break
        if max(x.log().abs().max().item(), y.log().abs().max().item()) > ABSORB:
            f, g = f + entropy * x.log(), g + entropy * y.log()
            kernel = _kernel(cost, f, g, a, b, entropy)
            x, y = torch.ones_like(a), torch.ones_like(b)
    return f + entropy * x.log(), g + entropy * y.log(), error < tolerance


def _newton(
    cost: Tensor, f: Tensor, g: Tensor, a: Tensor, b: Tensor, entropy: float, tolerance: float
) -> tuple[Tensor, Tensor, bool]:
    """Potentials by Newton's method on the dual from given ones, where Sinkhorn's iterations hardly move.

    The dual is <f, a> + <g, b> - entropy sum(kernel), concave; one potential is fixed, as they may all be
    shifted against each other.
    """
    n = len(a)
    for _ in range(MAX_NEWTON_STEPS):
        kernel = _kernel(cost, f, g, a, b, entropy)
        rows, columns = kernel.sum(1), kernel.sum(0)
        residual = torch.cat([a - rows, b - columns])
        if residual.abs().sum() < tolerance:
            return f, g, True
        hessian = torch.block_diag(rows.diag(), columns.diag())
        hessian[:n, n:], hessian[n:, :n] = kernel, kernel.T
        hessian.diagonal().mul_(1 + 1e-12)
        step, info = torch.linalg.solve_ex(hessian[:-1, :-1], entropy * residual[:-1])
        if info or not step.isfinite().all():
            break
        step = torch.cat([step, step.new_zeros(1)])
        value = f @ a + g @ b - entropy * kernel.sum()
        for halvings in range(MAX_HALVINGS):
            size = 0.5**halvings
            moved = f + size * step[:n], g + size * step[n:]
            kernel = _kernel(cost, *moved, a, b, entropy)
            new = moved[0] @ a + moved[1] @ b - entropy * kernel.sum()
            apart = torch.cat([a - kernel.sum(1), b - kernel.sum(0)]).abs().sum()
            # close to the end the dual's value moves by less than its rounding
            if new > value or apart < residual.abs().sum() / 2:
                break
        else:
            break
        f, g = moved
    return f, g, False


def _kernel(cost: Tensor, f: Tensor, g: Tensor, a: Tensor, b: Tensor, entropy: float) -> Tensor:
    return ((f[:, None] + g - cost) / entropy).exp_() * a[:, None] * b


def _staircase(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The north-west corner's staircase: the pairs (i, j) that it goes through, and which steps are of i.

    It goes from the first pair to the last, one step in one sample at a time, in the order in which masses
    are used up.
    """
    ends = torch.cat([a.cumsum(0)[:-1], b.cumsum(0)[:-1]])
    is_upper = (torch.arange(len(ends), device=a.device) < len(a) - 1)[ends.argsort(stable=True)]
    start = is_upper.new_zeros(1, dtype=torch.long)
    i, j = (torch.cat([start, steps.long().cumsum(0)]) for steps in (is_upper, ~is_upper))
    return i, j, is_upper


def _corner_potentials(cost: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Potentials f (n,) and g (m,) with f_i + g_j = C_ij along the staircase."""
    i, j, is_upper = _staircase(a, b)
    change = cost[i[1:], j[1:]] - cost[i[:-1], j[:-1]]
    f = torch.cat([cost.new_zeros(1), change[is_upper].cumsum(0)])
    g = torch.cat([cost.new_zeros(1), change[~is_upper].cumsum(0)]) + cost[0, 0]
    return f, g


def _corner_plan(a: Tensor, b: Tensor) -> Tensor:
    """The north-west corner's plan: of two sorted samples, the sort's."""
    i, j, _ = _staircase(a, b)
    ends = torch.cat([a.cumsum(0)[:-1], b.cumsum(0)[:-1]]).sort().values
    plan = a.new_zeros(len(a), len(b))
    plan[i, j] = torch.cat([ends, a.sum()[None]]).diff(prepend=a.new_zeros(1)).clamp(min=0)
    return _with_marginals(plan, a, b)


def _with_marginals(plan: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """The plan with exactly the marginals a and b (Altschuler et al., arXiv 1705.09634, algorithm 2)."""
    plan = plan * (a / plan.sum(1).clamp_min(TINY)).clamp(max=1)[:, None]
    plan = plan * (b / plan.sum(0).clamp_min(TINY)).clamp(max=1)
    rest_a, rest_b = (a - plan.sum(1)).clamp(min=0), (b - plan.sum(0)).clamp(min=0)
    total = rest_a.sum()
    return plan if total <= 0 else plan + rest_a[:, None] * rest_b / total
