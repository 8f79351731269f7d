"""Stochastic dominance of one sample of rewards over another, as a differentiable loss.

Source: Melnyk et al., "Distributional Preference Alignment of LLMs via Optimal Transport",
NeurIPS 2024, arXiv 2406.05882.

Notation: U is the empirical measure of `upper`, V that of `lower`; Q_U and Q_V are their quantile
functions, step functions on (0, 1]. U dominates V to first order when Q_U(t) >= Q_V(t) for every t,
to second order when the integral of Q_U - Q_V from 0 to p is non-negative for every p.

This module, `sorting` and `coupling` import torch and scipy only, and know neither axolotl nor a model.
Everything is computed in float32, or in float64 where a sample is float64; the plan of a coupling in float64.
"""

from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from axolotl_aot.coupling import Coupled, couple
from axolotl_aot.sorting import SORTS

Penalty = Callable[[Tensor, float], Tensor]


# --- The tables: the only places in which an option's names and their meanings stand ---------------


def _logistic(z: Tensor, beta: float) -> Tensor:
    return F.softplus(-beta * z)  # log(1 + exp(-beta z))


def _squared_hinge(z: Tensor, beta: float) -> Tensor:
    return F.relu(beta - z).square()


def _least_squares(z: Tensor, beta: float) -> Tensor:
    return (beta - z).square()


def _sigmoid(z: Tensor, beta: float) -> Tensor:
    return torch.sigmoid(-beta * z)  # 1 / (1 + exp(beta z))


PENALTIES: dict[str, Penalty] = {
    "logistic": _logistic,
    "squared_hinge": _squared_hinge,
    "least_squares": _least_squares,
    "sigmoid": _sigmoid,
}

# Only a penalty that is a negative log-likelihood has a label to smooth.
SMOOTHABLE_PENALTIES = ("logistic",)


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


# --- The common grid of two quantile functions -------------------------------------------------


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
    _require_choice("sort", sort, SORTS)
    if soft_sort_strength is not None and not soft_sort_strength > 0:
        raise ValueError(f"soft_sort_strength must be positive, got {soft_sort_strength}")
    _require_sample("upper", upper)
    _require_sample("lower", lower)
    dtype = torch.promote_types(torch.promote_types(upper.dtype, lower.dtype), torch.float32)
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
        upper_edges = _masses("upper_weights", upper_weights, upper)[u.order].cumsum(0)
        lower_edges = _masses("lower_weights", lower_weights, lower)[v.order].cumsum(0)
        upper_edges, lower_edges = upper_edges / upper_edges[-1], lower_edges / lower_edges[-1]

    edges = torch.cat([upper_edges, lower_edges]).sort().values
    mass = edges.diff(prepend=edges.new_zeros(1)).double() / edges[-1]
    upper_index = torch.searchsorted(upper_edges, edges)  # the step that ends at or after the edge
    lower_index = torch.searchsorted(lower_edges, edges)
    return QuantileSteps(mass.to(dtype), u.values[upper_index], v.values[lower_index])


def dominance_loss(
    upper: Tensor,
    lower: Tensor,
    *,
    beta: float,
    penalty: str = "logistic",
    dominance: str = "first",
    sort: str = "hard",
    soft_sort_strength: float | None = None,
    label_smoothing: float = 0.0,
    upper_weights: Tensor | None = None,
    lower_weights: Tensor | None = None,
    entropy: float = 0.0,
) -> Tensor:
    """Penalised violation of "`upper` dominates `lower`" (arXiv 2406.05882, section 3).

    For first order, the integral over t in [0, 1] of h(Q_U(t) - Q_V(t)), with h the penalty:
    `log(1 + exp(-beta z))` (logistic), `max(0, beta - z)^2` (squared_hinge), `(beta - z)^2`
    (least_squares) or `1 / (1 + exp(beta z))` (sigmoid). For the first three, which are convex, it equals
    the optimal transport cost between both samples with the cost h(u - v); the sigmoid is not convex, and
    the sort is then no plan of least cost. With as many `upper` as `lower` it is the mean over matched
    ranks. For second order, h is applied to the integral of Q_U - Q_V up to each step's end instead.

    With an entropy above 0 it is the minimum over couplings gamma of <gamma, C> + entropy KL(gamma | a x b),
    C_ij = h(u_i - v_j), a and b the masses: towards 0 the optimal transport cost, at infinity the mean of h
    over all pairs. Its derivative is that of <gamma, C> with the minimising gamma held fixed (envelope
    theorem). See `axolotl_aot.coupling`, also for what happens to very many values.

    Args:
        upper: rewards that must dominate, shape (n,), in nats; differentiable.
        lower: rewards that they must dominate, shape (m,), in nats; differentiable.
        beta: steepness (logistic and sigmoid, 1/nats) or margin (the others, nats); positive.
        penalty: one of `PENALTIES`.
        dominance: one of `DOMINANCES`.
        sort: one of `SORTS`.
        soft_sort_strength: regularisation of the soft sort, 1/nats, positive. Where neighbours in a sorted
            sample lie more than 1 / strength apart, they are pulled together to that distance around their
            mean; the hard sort is its limit at 0. None: in proportion to the spread, so that it acts at any
            scale. 1 / strength is then 6 D / (n + 1) for `upper` and 6 D / (m + 1) for `lower`, twice what
            evenly spaced values lie apart, with D the mean distance between two values of the same sample,
            pooled over both samples. Weights do not enter the sort.
        label_smoothing: e in [0, 0.5): `(1 - e) h(z) + e h(-z)`; logistic only.
        upper_weights: non-negative masses, shape (n,), normalised to sum to 1; uniform where None.
        lower_weights: the same for `lower`, shape (m,).
        entropy: regularisation of the coupling, in units of h, from 0, the sort, to infinity, all pairs; with
            first order and the hard sort only.

    Returns:
        The loss, a scalar of float32, or of float64 where a sample is float64.

    Raises:
        ValueError: an empty or non-finite sample, weights that are negative, non-finite, all zero or
            of another shape, an unknown option, or a number outside its range.
    """
    cost = _cost(beta, penalty, label_smoothing)
    _require_choice("dominance", dominance, DOMINANCES)
    if entropy:
        _require_coupling(entropy, dominance, sort)
        return coupled(
            upper,
            lower,
            beta=beta,
            penalty=penalty,
            label_smoothing=label_smoothing,
            upper_weights=upper_weights,
            lower_weights=lower_weights,
            entropy=entropy,
        ).loss
    steps = quantile_steps(
        upper,
        lower,
        sort=sort,
        soft_sort_strength=soft_sort_strength,
        upper_weights=upper_weights,
        lower_weights=lower_weights,
    )
    z = DOMINANCES[dominance].argument(steps.upper - steps.lower, steps.mass)
    return (steps.mass * cost(z)).sum()


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

    Arguments and errors as there.
    """
    _require_coupling(entropy)
    sides = []
    dtype = torch.promote_types(torch.promote_types(upper.dtype, lower.dtype), torch.float32)
    for name, sample, weights in (("upper", upper, upper_weights), ("lower", lower, lower_weights)):
        _require_sample(name, sample)
        mass = _masses(f"{name}_weights", weights, sample)
        values, order = torch.sort(sample.to(dtype), stable=True)
        sides.append((values, mass[order] / mass.sum()))
    (u, a), (v, b) = sides
    return couple(u, v, a, b, _cost(beta, penalty, label_smoothing), entropy)


def anchor_loss(
    chosen: Tensor,
    rejected: Tensor,
    *,
    beta: float,
    penalty: str = "logistic",
    chosen_weights: Tensor | None = None,
    rejected_weights: Tensor | None = None,
) -> Tensor:
    """(E h(u) + E h(-v)) / 2: chosen rewards dominate those of the base model, and these the rejected ones.

    The base model's own rewards are 0, a measure of one point, with which there is but one coupling, so that
    nothing is sorted. If both hold, chosen dominate rejected rewards by transitivity. With the sigmoid it is
    APO-zero (D'Oosterlinck et al., arXiv 2408.06266) on as many chosen as rejected answers.

    Args:
        chosen: rewards of chosen answers, shape (n,), in nats; differentiable. None of them: no part in it.
        rejected: rewards of rejected answers, shape (m,), in nats; differentiable. As `chosen`.
        beta, penalty: as for `dominance_loss`.
        chosen_weights: non-negative masses, shape (n,), normalised to sum to 1; uniform where None.
        rejected_weights: the same for `rejected`, shape (m,).

    Returns:
        The loss, a scalar of float32, or of float64 where a sample is float64.

    Raises:
        ValueError: both samples are empty, or what `dominance_loss` refuses.
    """
    cost = _cost(beta, penalty)
    if not len(chosen) and not len(rejected):
        raise ValueError("chosen and rejected are both empty")
    dtype = torch.promote_types(torch.promote_types(chosen.dtype, rejected.dtype), torch.float32)
    total = chosen.new_zeros((), dtype=dtype)
    for name, sample, weights, sign in (
        ("chosen", chosen, chosen_weights, 1),
        ("rejected", rejected, rejected_weights, -1),
    ):
        if len(sample):
            _require_sample(name, sample)
            mass = _masses(f"{name}_weights", weights, sample)
            total = total + ((mass / mass.sum()).to(dtype) * cost(sign * sample.to(dtype))).sum() / 2
    return total


def _cost(beta: float, penalty: str, label_smoothing: float = 0.0) -> Callable[[Tensor], Tensor]:
    """The penalty as a function of the difference alone."""
    _require_penalty(beta, penalty, label_smoothing)
    h, e = PENALTIES[penalty], label_smoothing
    if e:
        return lambda z: (1 - e) * h(z, beta) + e * h(-z, beta)
    return lambda z: h(z, beta)


class Violation(NamedTuple):
    """How far a sample is from dominating another.

    To first order: size, the integral of the positive part of Q_V - Q_U over t in [0, 1], in nats; rate,
    the measure of the t with Q_U(t) < Q_V(t). To second order the same of the integrals of both quantile
    functions from 0 to t. Both are scalars, zero exactly when U dominates V.
    """

    size: Tensor
    rate: Tensor


def violation(
    upper: Tensor,
    lower: Tensor,
    upper_weights: Tensor | None = None,
    lower_weights: Tensor | None = None,
    *,
    dominance: str = "first",
) -> Violation:
    """Violation of the dominance of `upper` (n,) over `lower` (m,), both in nats.

    The weights and the order are those of `dominance_loss`.

    Raises:
        ValueError: an empty or non-finite sample, an unknown order, or weights that `dominance_loss`
            refuses.
    """
    _require_choice("dominance", dominance, DOMINANCES)
    steps = quantile_steps(upper, lower, upper_weights=upper_weights, lower_weights=lower_weights)
    return Violation(*DOMINANCES[dominance].violation(steps.upper - steps.lower, steps.mass))


# --- Checks -------------------------------------------------------------------------------------


def _require_choice(name: str, value: str, choices: Iterable[str]) -> None:
    choices = list(choices)
    if value not in choices:
        close = get_close_matches(str(value), choices, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"unknown {name} {value!r}: must be one of {', '.join(choices)}.{hint}")


def _require_penalty(beta: float, penalty: str, label_smoothing: float) -> None:
    _require_choice("penalty", penalty, PENALTIES)
    if not beta > 0:
        raise ValueError(f"beta must be positive, got {beta}")
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing must lie in [0, 0.5), got {label_smoothing}")
    if label_smoothing and penalty not in SMOOTHABLE_PENALTIES:
        raise ValueError(
            f"label_smoothing needs penalty {' or '.join(SMOOTHABLE_PENALTIES)}, got {penalty!r}"
        )


def _require_coupling(entropy: float, dominance: str = "first", sort: str = "hard") -> None:
    if not entropy > 0:
        raise ValueError(f"entropy must not be negative, got {entropy}")
    if dominance != "first" or sort != "hard":
        raise ValueError(
            "entropy above 0 replaces the sort: it needs dominance 'first' and sort 'hard', got "
            f"{dominance!r} and {sort!r}"
        )


def _require_sample(name: str, sample: Tensor) -> None:
    if sample.ndim != 1 or len(sample) == 0:
        raise ValueError(f"{name} must be a non-empty 1-D tensor, got shape {tuple(sample.shape)}")
    finite = sample.isfinite()
    if not finite.all():
        count = int((~finite).sum())
        raise ValueError(f"{name} has {count} of {len(sample)} values that are not finite")


def _masses(name: str, weights: Tensor | None, sample: Tensor) -> Tensor:
    if weights is None:
        return torch.ones(len(sample), dtype=torch.float64, device=sample.device)
    if weights.shape != sample.shape:
        raise ValueError(
            f"{name} must have the sample's shape {tuple(sample.shape)}, got {tuple(weights.shape)}"
        )
    weights = weights.detach().to(sample.device, torch.float64)
    if not (weights.isfinite() & (weights >= 0)).all() or weights.sum() == 0:
        raise ValueError(f"{name} must be finite, non-negative and not all zero")
    return weights
