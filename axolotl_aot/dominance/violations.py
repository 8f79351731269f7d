"""How far a sample is from dominating another."""

from typing import NamedTuple

from torch import Tensor

from axolotl_aot.dominance.checks import require_choice
from axolotl_aot.dominance.orders import DOMINANCES
from axolotl_aot.dominance.steps import quantile_steps


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
    require_choice("dominance", dominance, DOMINANCES)
    steps = quantile_steps(upper, lower, upper_weights=upper_weights, lower_weights=lower_weights)
    return Violation(*DOMINANCES[dominance].violation(steps.upper - steps.lower, steps.mass))
