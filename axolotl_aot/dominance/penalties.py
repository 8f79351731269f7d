"""Penalties h(z) of a difference z of rewards, in nats: small where z is large.

They are those of the paper's section 3 (arXiv 2406.05882), and a bounded one.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from axolotl_aot.dominance.checks import require_choice

Penalty = Callable[[Tensor, float], Tensor]  # of z and beta
Cost = Callable[[Tensor], Tensor]  # of z alone


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


def cost_function(beta: float, penalty: str, label_smoothing: float = 0.0) -> Cost:
    """The penalty as a function of the difference alone.

    Raises:
        ValueError: an unknown penalty, or a number outside its range.
    """
    _require_penalty(beta, penalty, label_smoothing)
    h, e = PENALTIES[penalty], label_smoothing
    if e:
        return lambda z: (1 - e) * h(z, beta) + e * h(-z, beta)
    return lambda z: h(z, beta)


def _require_penalty(beta: float, penalty: str, label_smoothing: float) -> None:
    require_choice("penalty", penalty, PENALTIES)
    if not beta > 0:
        raise ValueError(f"beta must be positive, got {beta}")
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing must lie in [0, 0.5), got {label_smoothing}")
    if label_smoothing and penalty not in SMOOTHABLE_PENALTIES:
        raise ValueError(
            f"label_smoothing needs penalty {' or '.join(SMOOTHABLE_PENALTIES)}, got {penalty!r}"
        )
