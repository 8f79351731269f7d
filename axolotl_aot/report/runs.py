"""What a report is of: a trained model's scored answers, its reference's, and the questions asked of them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

BASE_MODEL = "base model"  # what the reference is, unless training started from an adapter


@dataclass(frozen=True)
class Answers:
    """Log-probabilities of the completions of one label, in nats, each of shape (n,).

    weights: their masses; uniform where None. rows: where they stand in the data set; None where that is
    not known.
    """

    policy: np.ndarray
    reference: np.ndarray
    weights: np.ndarray | None = None
    rows: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.policy)

    @property
    def rewards(self) -> np.ndarray:
        """log pi(y|x) - log pi_ref(y|x), in nats."""
        return self.policy - self.reference

    @property
    def not_finite(self) -> int:
        """How many of the log-probabilities are NaN or infinite."""
        return int((~np.isfinite([self.policy, self.reference])).sum())


@dataclass(frozen=True)
class Run:
    """What a trained model and its reference say of a data set.

    paired: chosen[i] and rejected[i] answer the same prompt. reference: what the reference is, in words.
    """

    name: str
    paired: bool
    chosen: Answers
    rejected: Answers
    reference: str = BASE_MODEL

    @property
    def before(self) -> "Run":
        """The same before training, where the policy is the reference."""
        return replace(
            self,
            chosen=replace(self.chosen, policy=self.chosen.reference),
            rejected=replace(self.rejected, policy=self.rejected.reference),
        )


@dataclass(frozen=True)
class ScoredRun:
    """Answers scored in a run, and its log; of the main process.

    source: which answers they are, as `report` takes it. history: Trainer's log. dataset: whose rows
    they are, tokenized; None where their texts are not to be found. answers: what the model says before and
    after training, as `report.answers` has it; None where that was not asked for.
    """

    run: Run
    source: dict[str, Any]
    history: list[dict[str, float]]
    tokenizer: PreTrainedTokenizerBase
    dataset: Dataset | None = None
    answers: dict[str, Any] | None = None


# --- What is compared ---------------------------------------------------------------------------


class Comparison(NamedTuple):
    """One question of the report.

    title: a heading. quantity: what is compared, in nats, as an axis says it. upper, lower: names of the
    sample that should dominate and of the other. samples: both, of a run. before: whether it is asked of
    the reference, too; where not, both samples are equal there by definition.
    """

    title: str
    quantity: str
    upper: str
    lower: str
    samples: Callable[[Run], tuple[np.ndarray, np.ndarray]]
    before: bool = False
    needs_pairs: bool = False


COMPARISONS = {
    "rewards": Comparison(
        "Rewards of chosen and rejected answers",
        "reward: log policy / reference (nats)",
        "chosen",
        "rejected",
        lambda run: (run.chosen.rewards, run.rejected.rewards),
    ),
    "log_ratios": Comparison(
        "Log-likelihood ratio of chosen to rejected answers",
        "log chosen / rejected (nats)",
        "policy",
        "reference",
        lambda run: (
            run.chosen.policy - run.rejected.policy,
            run.chosen.reference - run.rejected.reference,
        ),
        needs_pairs=True,
    ),
    "log_probabilities": Comparison(
        "Log-probabilities of chosen and rejected answers",
        "log-probability (nats)",
        "chosen",
        "rejected",
        lambda run: (run.chosen.policy, run.rejected.policy),
        before=True,
    ),
}


def comparisons_of(run: Run) -> dict[str, Comparison]:
    """Those of `COMPARISONS` that a run's data allow."""
    return {key: value for key, value in COMPARISONS.items() if run.paired or not value.needs_pairs}
