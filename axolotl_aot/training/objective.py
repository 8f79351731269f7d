"""What is minimised: from the scores of a set of samples to loss, gradient and metrics.

`rl: aot` (arXiv 2406.05882, eq. 5) asks that the policy's log-ratio of chosen to rejected answers dominate
the reference's; `rl: aot_unpaired` (eq. 7) that the rewards of chosen answers dominate those of rejected
ones. Both are minimised as `axolotl_aot.dominance.dominance_loss`. Nothing here knows a model or a trainer.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from axolotl_aot.config import AOTArgs
from axolotl_aot.dominance import (
    ANCHOR_METRICS,
    RANK_DISPLACEMENT,
    Coupled,
    anchor_loss,
    coupled,
    dominance_loss,
    violation,
)
from axolotl_aot.quantiles import MARGIN_METRICS, margins
from axolotl_aot.samples import SAMPLE_TYPES, SampleType

LOG = logging.getLogger(__name__)


class Scores(NamedTuple):
    """What is known of a set of answers; each of shape (answers,), log-probabilities in nats.

    The answers of a sample stand together: of pairs, each chosen answer is followed by its rejected one.

    policy, reference: log-probabilities under either. label: True for a chosen answer. weight: its mass
    among the answers of its label; None where all are alike. position: where its sample stands in the
    optimizer step's order, negative for a copy that only fills a batch up; None outside training.
    """

    policy: Tensor
    reference: Tensor
    label: Tensor
    weight: Tensor | None = None
    position: Tensor | None = None

    @property
    def rewards(self) -> Tensor:
        """log pi(y|x) - log pi_ref(y|x), in nats."""
        return self.policy - self.reference

    def of(self, which: Tensor | slice) -> "Scores":
        """The scores of some of the answers; which: a mask, numbers or a slice."""
        return Scores(**{name: field[which] for name, field in self._asdict().items() if field is not None})


class Distributions(NamedTuple):
    """Two samples in nats, the one that must dominate and the one it must dominate, and their masses.

    The names are those of `dominance_loss`.
    """

    upper: Tensor
    lower: Tensor
    upper_weights: Tensor | None
    lower_weights: Tensor | None


class Loss(NamedTuple):
    """A loss, or a term of one.

    value: a scalar. coupling: the entropic coupling that it was found with; None of a sort, and where nothing
    is compared.
    """

    value: Tensor
    coupling: Coupled | None = None


class Objective(ABC):
    """The loss of one `rl:` type, with its gradient and metrics.

    args: the YAML's `aot_` keys. beta: `rl_beta`.
    """

    rl: ClassVar[str]

    def __init__(self, args: AOTArgs, beta: float):
        self.args = args
        self.beta = beta
        self.plans = PlanCount()

    @property
    def samples(self) -> SampleType:
        """What a sample is."""
        return SAMPLE_TYPES[self.rl]

    @property
    def sequences_per_sample(self) -> int:
        """2 for pairs, else 1."""
        return len(self.samples.completions)

    @abstractmethod
    def chosen_and_rejected(self, scores: Scores) -> tuple[Scores, Scores]:
        """The answers of each label."""

    @abstractmethod
    def distributions(self, chosen: Scores, rejected: Scores) -> Distributions:
        """What is compared."""

    def loss(self, scores: Scores) -> Loss:
        """The weighted sum of `TERMS`, without those that need a label that is absent."""
        chosen, rejected = self.chosen_and_rejected(scores)
        total = 0 * scores.policy.sum()  # so that there is a gradient, of 0, where no term has a part in it
        coupling = None
        for term in TERMS:
            weight = term.weight(self.args)
            if weight and not (term.needs_both and not (len(chosen.policy) and len(rejected.policy))):
                found = term.loss(self, chosen, rejected)
                total = total + weight * found.value
                coupling = found.coupling or coupling
        return Loss(total, coupling)

    def loss_and_gradient(self, scores: Scores) -> tuple[Loss, Tensor]:
        """The loss, and its derivative by each answer's log-probability under the policy, (answers,)."""
        policy = scores.policy.detach().requires_grad_()
        with torch.enable_grad():
            loss = self.loss(scores._replace(policy=policy))
            (gradient,) = torch.autograd.grad(loss.value, policy)
        return loss._replace(value=loss.value.detach()), gradient

    def metrics(self, scores: Scores, coupling: Coupled | None = None) -> dict[str, float]:
        """What is logged of a set of samples; a label that is absent leaves its own out.

        `rewards/...` are beta times the log-ratio, as TRL's; what begins with `dominance/` is in nats.
        coupling: what their loss was found with, to be told of as well.
        """
        answers = dict(zip(("chosen", "rejected"), self.chosen_and_rejected(scores), strict=True))
        found, rewards = {}, {}
        for side, own in answers.items():
            if len(own.policy):
                rewards[side] = self.beta * own.rewards
                found[f"rewards/{side}"] = rewards[side].mean()
                found[f"logps/{side}"] = own.policy.mean()
                found.update(_anchor_metrics(side, own))
        if len(rewards) == 2:
            found["rewards/margins"] = found["rewards/chosen"] - found["rewards/rejected"]
            if self.samples.paired:
                found["rewards/accuracies"] = (rewards["chosen"] > rewards["rejected"]).float().mean()
            found.update(_dominance_metrics(self.distributions(**answers)))
        if coupling is not None:
            found[RANK_DISPLACEMENT] = coupling.displacement
        return {name: value.item() for name, value in found.items()}


class PairedObjective(Objective):
    """`rl: aot`: the policy's margins must dominate the reference's (arXiv 2406.05882, eq. 5)."""

    rl = "aot"

    def chosen_and_rejected(self, scores: Scores) -> tuple[Scores, Scores]:
        return scores.of(slice(0, None, 2)), scores.of(slice(1, None, 2))

    def distributions(self, chosen: Scores, rejected: Scores) -> Distributions:
        return Distributions(
            upper=chosen.policy - rejected.policy,
            lower=chosen.reference - rejected.reference,
            upper_weights=chosen.weight,
            lower_weights=chosen.weight,
        )


class UnpairedObjective(Objective):
    """`rl: aot_unpaired`: chosen answers' rewards must dominate rejected ones' (arXiv 2406.05882, eq. 7)."""

    rl = "aot_unpaired"

    def chosen_and_rejected(self, scores: Scores) -> tuple[Scores, Scores]:
        return scores.of(scores.label), scores.of(~scores.label)

    def distributions(self, chosen: Scores, rejected: Scores) -> Distributions:
        return Distributions(chosen.rewards, rejected.rewards, chosen.weight, rejected.weight)


# --- The terms of the loss --------------------------------------------------------------------


class Term(NamedTuple):
    """A part of the loss.

    weight: its weight, by the YAML's keys. loss: of the objective and of the scores of chosen and rejected
    answers. needs_both: whether it compares answers of both labels; of steps with one label it is left out
    then.
    """

    weight: Callable[[AOTArgs], float]
    loss: Callable[[Objective, Scores, Scores], Loss]
    needs_both: bool


def _dominance(objective: Objective, chosen: Scores, rejected: Scores) -> Loss:
    """Chosen dominates rejected (arXiv 2406.05882), under the sort or an entropic coupling."""
    args = objective.args
    comparison = {
        **objective.distributions(chosen, rejected)._asdict(),
        "beta": objective.beta,
        "penalty": args.aot_penalty,
        "label_smoothing": args.aot_label_smoothing,
    }
    if args.aot_entropy:
        found = coupled(**comparison, entropy=args.aot_entropy)
        objective.plans.count(found)
        return Loss(found.loss, found)
    sorted_loss = dominance_loss(
        **comparison,
        dominance=args.aot_dominance,
        sort=args.aot_sort,
        soft_sort_strength=args.aot_soft_sort_strength,
    )
    return Loss(sorted_loss)


def _anchor(objective: Objective, chosen: Scores, rejected: Scores) -> Loss:
    """Chosen rewards dominate the base model's, and these the rejected ones."""
    loss = anchor_loss(
        chosen.rewards,
        rejected.rewards,
        beta=objective.beta,
        penalty=objective.args.aot_penalty,
        chosen_weights=chosen.weight,
        rejected_weights=rejected.weight,
        doubt_labels=objective.args.aot_doubt_labels,
    )
    return Loss(loss)


# A term that acts on each answer alone has its place here, too.
TERMS = (
    Term(lambda args: 1 - args.aot_anchor, _dominance, needs_both=True),
    Term(lambda args: args.aot_anchor, _anchor, needs_both=False),
)


class PlanCount:
    """How many entropic couplings were found so far, and how many of them only roughly."""

    def __init__(self) -> None:
        self.plans = self.unconverged = 0
        self._next_warning = 1  # at so many rough ones

    def count(self, found: Coupled) -> None:
        """Add what was found; warns of the first that did not converge, and of every tenfold number."""
        self.plans += found.plans
        self.unconverged += found.unconverged
        if self.unconverged < self._next_warning:
            return
        LOG.warning(
            "%d of %d entropic couplings so far were not found to their tolerance within the cap on "
            "iterations, and are rough: enlarge aot_entropy",
            self.unconverged,
            self.plans,
        )
        while self._next_warning <= self.unconverged:
            self._next_warning *= 10


def _dominance_metrics(distributions: Distributions) -> dict[str, Tensor]:
    shortfall = violation(*distributions)
    upper, lower, *masses = distributions
    weights = [None if mass is None else _array(mass) for mass in masses]
    return {
        "dominance/violation": shortfall.size,
        "dominance/violation_rate": shortfall.rate,
        **dict(zip(MARGIN_METRICS.values(), margins(_array(upper), _array(lower), *weights), strict=True)),
    }


def _array(values: Tensor) -> np.ndarray:
    return values.detach().cpu().double().numpy()


def _anchor_metrics(side: str, answers: Scores) -> dict[str, Tensor]:
    """How far answers lie on the wrong side of the base model: mean depth in nats, and share, by mass."""
    metric = ANCHOR_METRICS[side]
    weight = torch.ones_like(answers.rewards) if answers.weight is None else answers.weight
    mass = weight.double() / weight.double().sum()
    depth = (-metric.sign * answers.rewards.double()).clamp(min=0)
    return {metric.nats: (mass * depth).sum(), metric.share: (mass * (depth > 0)).sum()}
