"""Dominance over the base model, whose own rewards are 0, and of it over rejected answers."""

from typing import NamedTuple

from torch import Tensor

from axolotl_aot.dominance.checks import common_dtype, masses, require_sample
from axolotl_aot.dominance.penalties import cost_function
from axolotl_aot.dominance.placements import FLOOR, WIDTH, placements


class AnchorMetric(NamedTuple):
    """Names under which it is logged how far answers of a label lie on the wrong side of the base model.

    nats: by how much, in the mean over all of them. share: how many. sign: of a reward on the right side.
    """

    nats: str
    share: str
    sign: int


ANCHOR_METRICS = {
    "chosen": AnchorMetric("dominance/chosen_below_base", "dominance/chosen_below_base_rate", 1),
    "rejected": AnchorMetric("dominance/rejected_above_base", "dominance/rejected_above_base_rate", -1),
}


def anchor_loss(
    chosen: Tensor,
    rejected: Tensor,
    *,
    beta: float,
    penalty: str = "logistic",
    chosen_weights: Tensor | None = None,
    rejected_weights: Tensor | None = None,
    doubt_labels: bool = False,
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
        doubt_labels: multiply the mass of each answer by how far the rewards agree with its label: for a
            chosen answer the share of the rejected ones' mass that lies below it (`placements`, of a width of
            `WIDTH` / beta), for a rejected one that of chosen ones above it; and `FLOOR` besides. The masses
            are held fixed in the derivative. Nothing is doubted where a label is absent.

    Returns:
        The loss, a scalar of float32, or of float64 where a sample is float64.

    Raises:
        ValueError: both samples are empty, or what `dominance_loss` refuses.
    """
    h = cost_function(beta, penalty)
    if not len(chosen) and not len(rejected):
        raise ValueError("chosen and rejected are both empty")
    dtype = common_dtype(chosen, rejected)
    total = chosen.new_zeros((), dtype=dtype)
    sides = [("chosen", chosen, chosen_weights, 1), ("rejected", rejected, rejected_weights, -1)]
    sides = [side for side in sides if len(side[1])]
    for name, sample, _, _ in sides:
        require_sample(name, sample)
    mass = {name: masses(f"{name}_weights", weights, sample) for name, sample, weights, _ in sides}
    if doubt_labels and len(mass) == 2:
        above = placements(chosen, rejected, mass["rejected"], WIDTH / beta)
        below = placements(-rejected, -chosen, mass["chosen"], WIDTH / beta)
        mass = {"chosen": mass["chosen"] * (FLOOR + above), "rejected": mass["rejected"] * (FLOOR + below)}
    for name, sample, _, sign in sides:
        share = (mass[name] / mass[name].sum()).to(dtype)
        total = total + (share * h(sign * sample.to(dtype))).sum() / 2
    return total
