"""Log-probabilities of a batch under policy and reference, and the loss and the metrics of a set of them.

`ScoringMixin` is what training (`effective_batch`) and evaluation (`evaluation`) have in common. A set
of samples is a matrix of one row per sample, its columns set by each trainer's `_pack`; rows are what is
gathered over processes and what the loss is differentiated by.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from accelerate.utils import broadcast, is_peft_model
from torch import Tensor, nn
from trl.trainer.utils import use_adapter

from axolotl_aot.dominance import dominance_loss, violation
from axolotl_aot.quantiles import MARGIN_METRICS, margins
from axolotl_aot.scoring.batches import REFERENCE, SEQUENCES, WEIGHT, Batch
from axolotl_aot.scoring.forward import CompletionScores, attach, completion_logprobs
from axolotl_aot.scoring.layout_check import Way, find_way, make_probe

MIXED_PRECISION = {"bf16": torch.bfloat16, "fp16": torch.float16}  # accelerate's names


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
    completions: tuple[str, ...]  # the columns of the data that hold a sample's completions
    columns: int  # of a row; one more holds the samples' weights, where the data has any

    def _pack(self, policy: Tensor, reference: Tensor, batch: Batch) -> Tensor:
        """Rows, without weights, from the log-probabilities of a micro-batch's sequences."""
        raise NotImplementedError

    def _unpack(self, rows: Tensor) -> Completions:
        raise NotImplementedError

    def _distributions(self, rows: Tensor) -> Distributions:
        raise NotImplementedError

    def _by_policy(self, gradient: Tensor) -> Tensor:
        """The part of a gradient by rows that belongs to the policy, in the sequences' order."""
        raise NotImplementedError

    # --- Log-probabilities -------------------------------------------------------------------

    _found_way: Way | None = None

    @property
    def sides(self) -> int:
        """Sequences of a sample."""
        return len(self.completions)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Trainer's, which under DeepSpeed casts to the model's precision; the loss needs float32."""
        kept = (REFERENCE, WEIGHT)
        precise = {k: v.to(self.args.device) for k, v in inputs.items() if k in kept}
        return {**super()._prepare_inputs(inputs), **precise}

    def _rows(self, model: nn.Module, batch: Batch) -> Tensor:
        """The rows of a prepared batch, without gradients."""
        reference = self._reference_logprobs(batch)
        with self._scoring(), self.compute_loss_context_manager():
            policy = self._scores(model, batch).logprobs
        return self._weighted(self._pack(policy, reference, batch), batch)

    def _weighted(self, rows: Tensor, batch: Batch) -> Tensor:
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

    def _attach(self, *models: nn.Module | None) -> None:
        """Let these models answer with log-probabilities; PEFT's wrapping, if any, is looked through."""
        for model in models:
            if model is not None:
                bare = self.accelerator.unwrap_model(model, keep_torch_compile=False)
                attach(bare.get_base_model() if is_peft_model(bare) else bare)

    def _scores(self, model: nn.Module, batch: Batch, **kwargs: Any) -> CompletionScores:
        return self._scores_in(self._way(batch), model, batch, **kwargs)

    def _scores_in(self, way: Way, model: nn.Module, batch: Batch, **kwargs: Any) -> CompletionScores:
        sequences = {name: batch[name] for name in SEQUENCES}
        return completion_logprobs(model, **sequences, layout=way.layout, plain=way.plain, **kwargs)

    def _way(self, batch: Batch) -> Way:
        """How this run scores; found at the first batch."""
        if self._found_way is None:
            probe = make_probe(batch)
            probe["input_ids"] = broadcast(probe["input_ids"])
            with self._scoring(), self.compute_loss_context_manager():
                self._found_way = find_way(
                    lambda some, way: self._scores_in(way, self.model, some),
                    probe,
                    attention=self.model.config._attn_implementation,  # transformers has no other place
                    padding_free=self.aot.aot_padding_free,
                    needs_one_row=self.aux_loss_enabled,
                    epsilon=self._epsilon,
                    model=type(self.accelerator.unwrap_model(self.model)).__name__,
                )
        return self._found_way

    @property
    def _epsilon(self) -> float:
        """Of the coarser of the types that weights are held in and matrices are multiplied in."""
        mixed = MIXED_PRECISION.get(self.accelerator.mixed_precision, self.model.dtype)
        return max(torch.finfo(dtype).eps for dtype in (mixed, self.model.dtype))

    def _reference_logprobs(self, batch: Batch) -> Tensor:
        if REFERENCE in batch:
            return batch[REFERENCE].T.flatten()
        return self._score_reference(batch)

    def _score_reference(self, batch: Batch) -> Tensor:
        """Log-probabilities under the reference: its own model, or the policy without its adapter."""
        with self._scoring(), self.compute_loss_context_manager():
            if self.ref_model is not None:
                return self._scores(self.ref_model, batch).logprobs
            policy = self.accelerator.unwrap_model(self.model)
            if not is_peft_model(policy):
                return self._scores(self.model, batch).logprobs
            with use_adapter(policy, "ref" if "ref" in policy.peft_config else None):
                return self._scores(self.model, batch).logprobs

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

    def _require_no_rewards(self, rows: Tensor) -> None:
        """Before the first step policy and reference are the same model."""
        completions = self._unpack(rows)
        difference = self._difference(torch.cat(completions[0::2]), torch.cat(completions[1::2]))
        if difference:
            raise RuntimeError(
                "policy and reference differ before any training: their log-probabilities are "
                f"{difference}. Likely cause: an adapter that does not begin as the base model "
                "(peft_init_lora_weights: use the default), or, with precompute_ref_log_probs, a file of "
                "another model's (delete aot_references in dataset_prepared_path)."
            )

    def _difference(self, logprobs: Tensor, others: Tensor) -> str | None:
        """How far two scorings of the same completions are apart; None where rounding explains it."""
        apart, size = (logprobs - others).abs().sum(), others.abs().sum()
        if apart <= max(1e-4, 4 * self._epsilon) * (size + len(others)):
            return None
        return f"{apart:.3g} nats apart, of {size:.3g}"

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
            distributions = self._distributions(rows)
            shortfall = violation(*distributions)
            metrics["dominance/violation"] = shortfall.size
            metrics["dominance/violation_rate"] = shortfall.rate
            arrays = [None if t is None else t.detach().cpu().double().numpy() for t in distributions]
            metrics.update(zip(MARGIN_METRICS.values(), margins(*arrays), strict=True))
        return {name: value.item() for name, value in metrics.items()}
