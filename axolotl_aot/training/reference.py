"""The reference's log-probabilities: its own model, or the policy with another adapter or with none."""

from collections.abc import Iterator
from contextlib import contextmanager

from accelerate.utils import is_peft_model
from peft import PeftModel
from torch import Tensor
from transformers import Trainer
from trl.trainer.utils import use_adapter

from axolotl_aot.report.runs import BASE_MODEL
from axolotl_aot.scoring.batches import REFERENCE_LOGPROBS, Batch
from axolotl_aot.scoring.models import REFERENCE_ADAPTER
from axolotl_aot.scoring.scorer import Scorer

STARTING_POLICY = "starting policy"  # the reference of a run that started from an adapter


class Reference:
    """Scores batches under the reference of a TRL trainer, whose models an engine may wrap meanwhile.

    precomputed: whether the collator looks its log-probabilities up in a file.
    """

    def __init__(self, trainer: Trainer, scorer: Scorer, precomputed: bool = False):
        self._trainer = trainer
        self._scorer = scorer
        self._precomputed = precomputed

    @property
    def words(self) -> str:
        """What it is, for a report."""
        return STARTING_POLICY if "start" in self.sources else BASE_MODEL

    @property
    def sources(self) -> list[str]:
        """Where its log-probabilities come from, by the names of `score_checks.REFERENCE_CAUSES`."""
        policy = self._trainer.accelerator.unwrap_model(self._trainer.model)
        model = "model"
        if self._trainer.ref_model is None and is_peft_model(policy):
            model = "start" if REFERENCE_ADAPTER in policy.peft_config else "adapter"
        return [model, "file"] if self._precomputed else [model]

    def logprobs(self, batch: Batch) -> Tensor:
        """In nats, of each of the batch's sequences: looked up by the collator before, or scored now."""
        if REFERENCE_LOGPROBS in batch:
            return batch[REFERENCE_LOGPROBS].T.flatten()
        return self.score(batch)

    def score(self, batch: Batch) -> Tensor:
        """Scored now, in nats, shape (sequences,)."""
        trainer = self._trainer
        if trainer.ref_model is not None:
            return self._scorer.scores_without_gradients(trainer.ref_model, batch).logprobs
        policy = trainer.accelerator.unwrap_model(trainer.model)
        if not is_peft_model(policy):
            return self._scorer.scores_without_gradients(trainer.model, batch).logprobs
        with as_reference(policy):
            return self._scorer.scores_without_gradients(trainer.model, batch).logprobs


@contextmanager
def as_reference(policy: PeftModel) -> Iterator[None]:
    """The policy with the reference's adapter, or without any.

    PEFT lets gradients to the weights of what is active only; what is trained stays the same here, as an
    engine may read that in any forward pass.
    """
    requires_grad = [(parameter, parameter.requires_grad) for parameter in policy.parameters()]
    with use_adapter(policy, REFERENCE_ADAPTER if REFERENCE_ADAPTER in policy.peft_config else None):
        for parameter, trained in requires_grad:
            parameter.requires_grad_(trained)
        yield
