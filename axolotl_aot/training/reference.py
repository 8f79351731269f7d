"""The reference's log-probabilities: its own model, or the policy without its adapter."""

from accelerate.utils import is_peft_model
from torch import Tensor
from transformers import Trainer
from trl.trainer.utils import use_adapter

from axolotl_aot.scoring.batches import REFERENCE_LOGPROBS, Batch
from axolotl_aot.scoring.scorer import Scorer


class Reference:
    """Scores batches under the reference of a TRL trainer, whose models an engine may wrap meanwhile.

    precomputed: whether the collator looks its log-probabilities up in a file.
    """

    def __init__(self, trainer: Trainer, scorer: Scorer, precomputed: bool = False):
        self._trainer = trainer
        self._scorer = scorer
        self._precomputed = precomputed

    @property
    def sources(self) -> list[str]:
        """Where its log-probabilities come from, by the names of `score_checks.REFERENCE_CAUSES`."""
        policy = self._trainer.accelerator.unwrap_model(self._trainer.model)
        model = "adapter" if self._trainer.ref_model is None and is_peft_model(policy) else "model"
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
        with use_adapter(policy, "ref" if "ref" in policy.peft_config else None):
            return self._scorer.scores_without_gradients(trainer.model, batch).logprobs
