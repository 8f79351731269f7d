"""Log-probabilities of a batch under policy and reference, and the loss and the metrics of a set of them.

`ScoringMixin` is what training (`effective_batch`) and evaluation (`evaluation`) have in common. A set
of samples is a matrix of one row per sample, its columns set by each trainer's `_pack`; rows are what is
gathered over processes and what the loss is differentiated by.

May import `axolotl_aot.dominance`, `logprobs`; accelerate and trl, and nothing of axolotl: it
knows its trainers only by what Trainer and TRL promise.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from accelerate.utils import is_peft_model
from torch import Tensor, nn
from trl.trainer.utils import use_adapter

from axolotl_aot.dominance import dominance_loss, violation
from axolotl_aot.logprobs import completion_logprobs

REFERENCE_LOGPROBS = ("ref_logps", "ref_chosen_logps", "ref_rejected_logps")
WEIGHT = "weight"  # the samples' masses in their distributions
# Entries of a collated batch that are not for the model.
NOT_FOR_THE_MODEL = {"completion_mask", "label", WEIGHT, *REFERENCE_LOGPROBS}


class Completions(NamedTuple):
    """Log-probabilities in nats: the chosen completions (n,) and the rejected ones (m,)."""

    chosen: Tensor
    chosen_reference: Tensor
    rejected: Tensor
    rejected_reference: Tensor


class Distributions(NamedTuple):
    """What is compared, in nats: the sample that must dominate, and the one it must dominate.

    The weights are the samples' masses, of the same shapes; None where all are alike. The names are those
    of `dominance_loss`.
    """

    upper: Tensor
    lower: Tensor
    upper_weights: Tensor | None
    lower_weights: Tensor | None


class ScoringMixin:
    """Scores batches, on top of a TRL trainer; `self.aot` holds the YAML's `aot_` keys."""

    # --- To be given by each trainer ---------------------------------------------------------

    paired: bool
    columns: int  # of a row; one more holds the samples' weights, where the data has any

    def _pack(self, policy: Tensor, reference: Tensor, batch: dict[str, Any]) -> Tensor:
        """Rows, without weights, from the log-probabilities of a micro-batch's sequences."""
        raise NotImplementedError

    def _unpack(self, rows: Tensor) -> Completions:
        raise NotImplementedError

    def _distributions(self, rows: Tensor) -> Distributions:
        raise NotImplementedError

    def _by_policy(self, gradient: Tensor) -> Tensor:
        """The part of a gradient by rows that belongs to the policy, in the sequences' order."""
        raise NotImplementedError

    def _precomputed_reference(self, batch: dict[str, Any]) -> Tensor | None:
        raise NotImplementedError

    # --- Log-probabilities -------------------------------------------------------------------

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Trainer's, which under DeepSpeed casts to the model's precision; the loss needs float32."""
        kept = (*REFERENCE_LOGPROBS, WEIGHT)
        precise = {k: v.to(self.args.device) for k, v in inputs.items() if k in kept}
        return {**super()._prepare_inputs(inputs), **precise}

    def _rows(self, model: nn.Module, batch: dict[str, Any]) -> Tensor:
        """The rows of a prepared batch, without gradients."""
        reference = self._reference_logprobs(batch)
        with self._scoring(), self.compute_loss_context_manager():
            policy, _ = self._logprobs(model, batch)
        return self._weighted(self._pack(policy, reference, batch), batch)

    def _weighted(self, rows: Tensor, batch: dict[str, Any]) -> Tensor:
        """The rows, with a column of the samples' weights where the batch has any."""
        return torch.cat([rows, batch[WEIGHT].to(rows)[:, None]], dim=1) if WEIGHT in batch else rows

    def _weights(self, rows: Tensor) -> Tensor | None:
        return rows[:, self.columns] if rows.shape[1] > self.columns else None

    @contextmanager
    def _scoring(self) -> Iterator[None]:
        """No gradients, no dropout, no noise, no gradient checkpointing; the mode before is restored."""
        training = self.model.training
        self.model.train(self._must_score_in_training_mode())
        try:
            with torch.no_grad():
                yield
        finally:
            self.model.train(training)

    def _must_score_in_training_mode(self) -> bool:
        """bitsandbytes repacks 4-bit weights at their first forward pass in evaluation mode on a CPU with
        AVX-512 BF16, and from then on lets no gradient through them. TRL switches dropout off anyway.
        """
        # transformers sets the attribute on 4-bit models only
        return self.accelerator.device.type == "cpu" and getattr(self.model, "is_loaded_in_4bit", False)

    def _logprobs(self, model: nn.Module, batch: dict[str, Any], **kwargs: Any) -> tuple[Tensor, Any]:
        inputs = {k: v for k, v in batch.items() if k not in NOT_FOR_THE_MODEL}
        return completion_logprobs(model, **inputs, completion_mask=batch["completion_mask"], **kwargs)

    def _reference_logprobs(self, batch: dict[str, Any]) -> Tensor:
        precomputed = self._precomputed_reference(batch)
        if precomputed is not None:
            return precomputed
        return self._score_reference(self.ref_model or self.model, batch)

    def _precompute(self, *model_and_inputs: Any) -> Tensor:
        """The reference for TRL's `compute_ref_log_probs`: (inputs) in TRL 1.8, (model, inputs) in 1.9."""
        *given, batch = model_and_inputs
        (model,) = given or [self.ref_model or self.model]
        return self._score_reference(model, batch)

    def _score_reference(self, model: nn.Module, batch: dict[str, Any]) -> Tensor:
        """Log-probabilities under the reference: its own model, or the policy without its adapter."""
        with self._scoring(), self.compute_loss_context_manager():
            if self.ref_model is None and is_peft_model(self.model):
                policy = self.accelerator.unwrap_model(self.model)
                with use_adapter(policy, "ref" if "ref" in policy.peft_config else None):
                    return self._logprobs(model, batch)[0]
            return self._logprobs(model, batch)[0]

    # --- Of a set of samples -----------------------------------------------------------------

    def _loss(self, rows: Tensor) -> Tensor:
        distributions = self._distributions(rows)
        if not (len(distributions.upper) and len(distributions.lower)):
            return 0 * rows.sum()  # nothing to compare: no loss, and a gradient of zero
        return dominance_loss(
            **distributions._asdict(),
            beta=self.beta,
            penalty=self.aot.aot_penalty,
            dominance=self.aot.aot_dominance,
            sort=self.aot.aot_sort,
            soft_sort_strength=self.aot.aot_soft_sort_strength,
            label_smoothing=self.aot.aot_label_smoothing,
        )

    def _require_finite(self, rows: Tensor) -> None:
        completions = self._unpack(rows)
        causes = {
            "policy": "training has diverged (lower learning_rate, or set max_grad_norm), or fp16 "
            "overflows (use bf16)",
            "reference": "the base model overflows in this precision (use bf16 or fp32 in place of "
            "fp16) or its weights hold such values",
        }
        for name, (chosen, rejected) in zip(
            ("reference", "policy"), (completions[1::2], completions[0::2]), strict=True
        ):
            values = torch.cat([chosen, rejected])
            bad = int((~values.isfinite()).sum())
            if bad:
                raise FloatingPointError(
                    f"step {self.state.global_step + 1}: {bad} of {len(values)} log-probabilities "
                    f"under the {name} are NaN or infinite. Likely cause: {causes[name]}."
                )

    def _metrics_of(self, rows: Tensor) -> dict[str, float]:
        """The metrics of one set of samples; a label that is absent leaves its own out."""
        completions = self._unpack(rows)
        metrics, rewards = {}, {}
        for side, policy, reference in (
            ("chosen", completions.chosen, completions.chosen_reference),
            ("rejected", completions.rejected, completions.rejected_reference),
        ):
            if len(policy):
                rewards[side] = self.beta * (policy - reference)
                metrics[f"rewards/{side}"] = rewards[side].mean()
                metrics[f"logps/{side}"] = policy.mean()
        if len(rewards) == 2:
            metrics["rewards/margins"] = metrics["rewards/chosen"] - metrics["rewards/rejected"]
            if self.paired:
                better = rewards["chosen"] > rewards["rejected"]
                metrics["rewards/accuracies"] = better.float().mean()
            shortfall = violation(*self._distributions(rows))
            metrics["dominance/violation"] = shortfall.size
            metrics["dominance/violation_rate"] = shortfall.rate
        return {name: value.item() for name, value in metrics.items()}
