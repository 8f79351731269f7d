"""The losses of many runs at once: those of TRL and of `axolotl_aot`, and what was tried besides.

Every loss takes what a step knows of its answers and gives a loss a run. Tests compare those that exist
elsewhere with `axolotl_aot.dominance` and with TRL. Imports torch and the constants of
`axolotl_aot.dominance.placements`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from axolotl_aot.dominance.placements import FLOOR, WIDTH

SINKHORN_STEPS = 60  # for an entropy of 1 or more; in proportion more below
LONGEST = 16  # tokens of an answer


class Step(NamedTuple):
    """The answers of a step, each (runs, answers); log-probabilities in nats.

    label: True for a chosen answer. chosen: how many of the first answers are chosen ones, and the others
    rejected, of pairs in the same order; only KTO's labels come in any order. length: tokens, the end token
    included. mismatched: mean log-ratio of answers to other prompts, (runs,), for KTO.
    """

    policy: Tensor
    reference: Tensor
    label: Tensor
    length: Tensor
    chosen: int
    mismatched: Tensor | None = None

    @property
    def rewards(self) -> Tensor:
        return self.policy - self.reference


Loss = Callable[[Step, Tensor], Tensor]  # of a step and of rl_beta, (runs, 1)


# --- TRL's ------------------------------------------------------------------------------------------


def dpo(step: Step, beta: Tensor) -> Tensor:
    u, v = step.rewards.chunk(2, dim=1)
    return F.softplus(-beta * (u - v)).mean(1)


def ipo(step: Step, beta: Tensor) -> Tensor:
    u, v = (step.rewards / step.length).chunk(2, dim=1)
    return (u - v - 1 / (2 * beta)).square().mean(1)


def apo_zero(step: Step, beta: Tensor) -> Tensor:
    u, v = step.rewards.chunk(2, dim=1)
    return (torch.sigmoid(-beta * u) + torch.sigmoid(beta * v)).mean(1)


def kto(step: Step, beta: Tensor, desirable_weight: float = 1.0) -> Tensor:
    baseline = step.mismatched.clamp(min=0)[:, None]
    sign = torch.where(step.label, 1.0, -1.0)
    weight = torch.where(step.label, desirable_weight, 1.0)
    return (weight * torch.sigmoid(-beta * sign * (step.rewards - baseline))).mean(1)


# --- Penalties --------------------------------------------------------------------------------------


def logistic(z: Tensor) -> Tensor:
    return F.softplus(-z)


def sigmoid(z: Tensor) -> Tensor:
    return torch.sigmoid(-z)


def generalized(q: float) -> Callable[[Tensor], Tensor]:
    """Between the logistic (q towards 0) and the sigmoid (1): Zhang & Sabuncu 2018, arXiv 1805.07836."""
    return lambda z: -torch.expm1(q * F.logsigmoid(z)) / q


PENALTIES: dict[str, Callable[[Tensor], Tensor]] = {
    "logistic": logistic,
    "sigmoid": sigmoid,
    "q0.3": generalized(0.3),
    "q0.5": generalized(0.5),
    "q0.7": generalized(0.7),
}


# --- Ours -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ours:
    """AOT's losses, and variations of them.

    paired: `rl: aot`, else `aot_unpaired`. entropy: 0 sorts. anchor: its weight. penalty: of the comparison.
    anchor_penalty: of the anchor, for chosen and for rejected. margin: nats that the anchor asks for besides.
    tau: a rejected answer's mass goes with its probability to this power. spread: rl_beta is divided by the
    rewards' interquartile range in units of this many nats, where that is larger. doubt: an answer's mass
    goes with the share of the other label's answers that it is on the right side of, to this power (half of
    those of the same reward; in between where they lie less than doubt_width / rl_beta apart).
    by_length: masses that give both labels the same distribution of lengths. matched: each pair is compared
    with itself, as DPO does. centre: this share of a pair's mean reward is taken from both. threshold: the
    anchor is half-way between the labels' mean rewards, if that is above 0. chosen_share: weight of the
    chosen answers in the anchor. per_token: rewards are divided by the answer's length, in units of the
    step's mean.
    """

    paired: bool
    entropy: float = 0.0
    anchor: float = 0.0
    penalty: str = "logistic"
    anchor_penalty: tuple[str, str] | None = None
    margin: float = 0.0
    tau: float = 0.0
    spread: float = 0.0
    doubt: float = 0.0
    doubt_width: float = WIDTH
    by_length: bool = False
    matched: bool = False
    centre: float = 0.0
    threshold: bool = False
    chosen_share: float = 0.5
    per_token: bool = False

    def __call__(self, step: Step, beta: Tensor) -> Tensor:
        if self.per_token:
            scale = step.length.mean(1, keepdim=True) / step.length
            step = step._replace(policy=step.policy * scale, reference=step.reference * scale)
        u, v = step.rewards[:, : step.chosen], step.rewards[:, step.chosen :]
        if self.spread:
            low, high = torch.quantile(step.rewards.detach(), torch.tensor([0.25, 0.75]).to(u), dim=1)
            beta = beta / ((high - low)[:, None] / self.spread).clamp(min=1)
        a, b = (torch.full_like(x, 1 / x.shape[1]) for x in (u, v))
        if self.doubt:
            apart = beta[..., None] * (u[:, :, None] - v[:, None]).detach()
            above = (apart / (2 * self.doubt_width) + 0.5).clamp(0, 1)
            a, b = ((FLOOR + share) ** self.doubt for share in (above.mean(2), above.mean(1)))
        if self.by_length:
            a, b = _alike_in_length(step.length[:, : step.chosen], step.length[:, step.chosen :])
        if self.tau:
            b = b * (self.tau * step.policy[:, step.chosen :].detach()).softmax(1)
        a, b = (x / x.sum(1, keepdim=True) for x in (a, b))
        total = 0.0
        if self.anchor < 1:
            total = (1 - self.anchor) * self._comparison(step, beta, u, v, a, b)
        if self.anchor:
            total = total + self.anchor * self._anchor(beta, u, v, a, b)
        return total

    def _comparison(self, step: Step, beta: Tensor, u: Tensor, v: Tensor, a: Tensor, b: Tensor) -> Tensor:
        if self.paired:
            u, v = (x[:, : step.chosen] - x[:, step.chosen :] for x in (step.policy, step.reference))
        penalty = PENALTIES[self.penalty]
        if self.matched:
            return penalty(beta * (step.rewards[:, : step.chosen] - step.rewards[:, step.chosen :])).mean(1)
        if not self.entropy:
            return sorted_cost(u, v, a, b, lambda z: penalty(beta * z))
        cost = penalty(beta[..., None] * (u[:, :, None] - v[:, None]))
        plan = entropic_plan(cost.detach(), a, b, self.entropy)
        value = (plan * cost).sum((1, 2))
        if math.isfinite(self.entropy):
            value = value + self.entropy * torch.xlogy(plan, plan / (a[:, :, None] * b[:, None])).sum((1, 2))
        return value

    def _anchor(self, beta: Tensor, u: Tensor, v: Tensor, a: Tensor, b: Tensor) -> Tensor:
        if self.centre:
            mean = self.centre * (u + v) / 2
            u, v = u - mean, v - mean
        if self.threshold:
            zero = ((u.mean(1) + v.mean(1)) / 2).detach().clamp(min=0)[:, None]
            u, v = u - zero, v - zero
        names = self.anchor_penalty or (self.penalty, self.penalty)
        upper, lower = (PENALTIES[name] for name in names)
        of_chosen = (a * upper(beta * (u - self.margin))).sum(1)
        of_rejected = (b * lower(-beta * (v + self.margin))).sum(1)
        return self.chosen_share * of_chosen + (1 - self.chosen_share) * of_rejected


def _alike_in_length(chosen: Tensor, rejected: Tensor) -> tuple[Tensor, Tensor]:
    """Masses under which a length says nothing of the label; of each length one answer more is counted."""
    counts = [F.one_hot(x.long().clamp(max=LONGEST - 1), LONGEST).sum(1) + 1.0 for x in (chosen, rejected)]
    both = sum(count / count.sum(1, keepdim=True) for count in counts) / 2
    return tuple(
        (both / (count / count.sum(1, keepdim=True))).gather(1, x.long().clamp(max=LONGEST - 1))
        for x, count in zip((chosen, rejected), counts, strict=True)
    )


def sorted_cost(u: Tensor, v: Tensor, a: Tensor, b: Tensor, cost: Callable[[Tensor], Tensor]) -> Tensor:
    """Of the quantile functions, on the common refinement of their steps."""
    (u, i), (v, j) = u.sort(1), v.sort(1)
    ends = [mass.gather(1, order).double().cumsum(1) for mass, order in ((a, i), (b, j))]
    ends = [end / end[:, -1:] for end in ends]
    edges = torch.cat(ends, dim=1).sort(1).values
    mass = edges.diff(dim=1, prepend=torch.zeros_like(edges[:, :1]))
    # a step's middle lies inside it, whatever the rounding of its edges
    middles = edges - mass / 2
    upper, lower = (
        x.gather(1, torch.searchsorted(end, middles).clamp(max=x.shape[1] - 1))
        for x, end in zip((u, v), ends, strict=True)
    )
    return (mass.to(u) * cost(upper - lower)).sum(1)


def entropic_plan(cost: Tensor, a: Tensor, b: Tensor, entropy: float) -> Tensor:
    """Sinkhorn's iterations in the log-domain; (runs, n, m)."""
    if math.isinf(entropy):
        return a[:, :, None] * b[:, None]
    log_a, log_b = a.log()[:, :, None], b.log()[:, None]
    f = torch.zeros_like(log_a)
    for _ in range(round(SINKHORN_STEPS / min(1.0, entropy))):
        g = -entropy * ((f - cost) / entropy + log_a).logsumexp(1, keepdim=True)
        f = -entropy * ((g - cost) / entropy + log_b).logsumexp(2, keepdim=True)
    g = -entropy * ((f - cost) / entropy + log_a).logsumexp(1, keepdim=True)
    return ((f + g - cost) / entropy + log_a + log_b).exp()
