"""What is minimised: from the scores of a set of samples to loss, gradient and metrics.

`rl: aot` (arXiv 2406.05882, eq. 5) asks that the policy's log-ratio of chosen to rejected answers dominate
the reference's; `rl: aot_unpaired` (eq. 7) that the rewards of chosen answers dominate those of rejected
ones. Both are minimised as `axolotl_aot.dominance.dominance_loss`. Nothing here knows a model or a trainer.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from axolotl_aot.config import AOTArgs
from axolotl_aot.dominance import dominance_loss, violation
from axolotl_aot.quantiles import MARGIN_METRICS, margins
from axolotl_aot.samples import SAMPLE_TYPES, SampleType


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
        return Scores(*(None if field is None else field[which] for field in self))


class Distributions(NamedTuple):
    """Two samples in nats, the one that must dominate and the one it must dominate, and their masses.

    The names are those of `dominance_loss`.
    """

    upper: Tensor
    lower: Tensor
    upper_weights: Tensor | None
    lower_weights: Tensor | None


class Objective(ABC):
    """The loss of one `rl:` type, with its gradient and metrics.

    args: the YAML's `aot_` keys. beta: `rl_beta`.
    """

    rl: ClassVar[str]

    def __init__(self, args: AOTArgs, beta: float):
        self.args = args
        self.beta = beta

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

    def loss(self, scores: Scores) -> Tensor:
        """The sum of `TERMS`, a scalar; 0, with a gradient of 0, where a label is absent."""
        chosen, rejected = self.chosen_and_rejected(scores)
        if not (len(chosen.policy) and len(rejected.policy)):
            return 0 * scores.policy.sum()
        return sum(term(self, chosen, rejected) for term in TERMS)

    def loss_and_gradient(self, scores: Scores) -> tuple[Tensor, Tensor]:
        """The loss, and its derivative by each answer's log-probability under the policy, (answers,)."""
        policy = scores.policy.detach().requires_grad_()
        with torch.enable_grad():
            loss = self.loss(scores._replace(policy=policy))
            (gradient,) = torch.autograd.grad(loss, policy)
        return loss.detach(), gradient

    def metrics(self, scores: Scores) -> dict[str, float]:
        """What is logged of a set of samples; a label that is absent leaves its own out.

        `rewards/...` are beta times the log-ratio, as TRL's; what begins with `dominance/` is in nats.
        """
        answers = dict(zip(("chosen", "rejected"), self.chosen_and_rejected(scores), strict=True))
        found, rewards = {}, {}
        for side, own in answers.items():
            if len(own.policy):
                rewards[side] = self.beta * own.rewards
                found[f"rewards/{side}"] = rewards[side].mean()
                found[f"logps/{side}"] = own.policy.mean()
        if len(rewards) == 2:
            found["rewards/margins"] = found["rewards/chosen"] - found["rewards/rejected"]
            if self.samples.paired:
                found["rewards/accuracies"] = (rewards["chosen"] > rewards["rejected"]).float().mean()
            found.update(_dominance_metrics(self.distributions(**answers)))
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


def _dominance(objective: Objective, chosen: Scores, rejected: Scores) -> Tensor:
    args = objective.args
    return dominance_loss(
        **objective.distributions(chosen, rejected)._asdict(),
        beta=objective.beta,
        penalty=args.aot_penalty,
        dominance=args.aot_dominance,
        sort=args.aot_sort,
        soft_sort_strength=args.aot_soft_sort_strength,
        label_smoothing=args.aot_label_smoothing,
    )


# The loss is the sum of these. Each is given the objective, for the YAML's keys, and the scores of the chosen
# and of the rejected answers, of which there is at least one each; it returns a scalar. A term that acts on
# each answer alone has its place here, too.
TERMS: tuple[Callable[[Objective, Scores, Scores], Tensor], ...] = (_dominance,)


def _dominance_metrics(distributions: Distributions) -> dict[str, Tensor]:
    shortfall = violation(*distributions)
    arrays = [None if t is None else t.detach().cpu().double().numpy() for t in distributions]
    return {
        "dominance/violation": shortfall.size,
        "dominance/violation_rate": shortfall.rate,
        **dict(zip(MARGIN_METRICS.values(), margins(*arrays), strict=True)),
    }
