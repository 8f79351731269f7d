"""How far the rewards agree with an answer's label: its place among the answers of the other label."""

import torch
from torch import Tensor

# A mass is never less than this share of a mass in full: an answer that the model has learnt to dislike by
# mistake must be able to come back.
FLOOR = 0.05
# Rewards that lie less apart count as in between, in units of 1 / beta: wide enough for rounding.
WIDTH = 0.1


def placements(sample: Tensor, other: Tensor, other_mass: Tensor, width: float) -> Tensor:
    """The share of the other sample that lies below each value: its placement, (n,) in float64, in [0, 1].

    Their mean is the area under the ROC curve (Hanley & Hajian-Tilaki, Academic Radiology 1997). A value
    counts as half below one that is its equal and, between `width` above and `width` below it, in
    proportion, so that rounding does not decide.

    Args:
        sample: (n,), in nats.
        other: (m,), in nats; m above 0.
        other_mass: non-negative, of any positive sum, (m,).
        width: above 0, in nats.
    """
    values, mass = sample.detach().double(), other_mass.double() / other_mass.double().sum()
    ordered, order = other.detach().double().sort()
    below, moment = (_running_sum(x) for x in (mass[order], mass[order] * ordered))
    first = torch.searchsorted(ordered, values - width)  # those before lie lower by more than the width
    last = torch.searchsorted(ordered, values + width)
    near, near_moment = below[last] - below[first], moment[last] - moment[first]
    return (below[first] + (near * (values + width) - near_moment) / (2 * width)).clamp(0, 1)


def _running_sum(x: Tensor) -> Tensor:
    return torch.cat([x.new_zeros(1), x.cumsum(0)])
