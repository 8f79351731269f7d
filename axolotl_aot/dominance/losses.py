"""The penalised violation of dominance: the loss of arXiv 2406.05882."""

from torch import Tensor

from axolotl_aot.dominance.checks import require_choice
from axolotl_aot.dominance.coupling import coupled
from axolotl_aot.dominance.orders import DOMINANCES
from axolotl_aot.dominance.penalties import cost_function
from axolotl_aot.dominance.steps import quantile_steps


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
    theorem). See `coupled`, also for what happens to very many values.

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
    h = cost_function(beta, penalty, label_smoothing)
    require_choice("dominance", dominance, DOMINANCES)
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
    return (steps.mass * h(z)).sum()


def _require_coupling(entropy: float, dominance: str, sort: str) -> None:
    if not entropy > 0:
        raise ValueError(f"entropy must be 0 (the sort) or above, up to infinity (all pairs), got {entropy}")
    if dominance != "first" or sort != "hard":
        raise ValueError(
            "entropy above 0 replaces the sort: it needs dominance 'first' and sort 'hard', got "
            f"{dominance!r} and {sort!r}"
        )
