"""The dominance loss over the whole effective batch, exactly, however it is cut.

The loss compares distributions, so it needs the rewards of a whole batch before any of them can be
differentiated. `EffectiveBatchMixin` does that for every number of micro-batches and processes:

1. once per optimizer step, every micro-batch is scored without gradients;
2. the scores, a few numbers per sample, are gathered over all processes;
3. one call of `dominance_loss` gives the loss and, by autograd, its derivative by every sample's
   log-probability, the sample's coefficient;
4. each micro-batch's backward pass goes through the sum of coefficient times log-probability.

With one accumulation step, the forward pass that is differentiated is also the one that scores.

May import `axolotl_aot.config`, `dominance`, `handover`, `logprobs`; accelerate, transformers and trl, and
nothing of axolotl: it knows its trainers only by what Trainer and TRL promise.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from accelerate.utils import is_peft_model
from torch import Tensor, nn
from transformers import set_seed
from transformers.trainer_utils import EvalLoopOutput
from trl.trainer.utils import use_adapter

from axolotl_aot.dominance import dominance_loss, violation
from axolotl_aot.handover import AOTSetup
from axolotl_aot.logprobs import completion_logprobs

# Entries of a collated batch that are not for the model.
NOT_FOR_THE_MODEL = {
    "completion_mask",
    "label",
    "ref_logps",
    "ref_chosen_logps",
    "ref_rejected_logps",
}
SCORED = "aot_scored"  # where a scored micro-batch carries its `Scored`


class Completions(NamedTuple):
    """Log-probabilities in nats: the chosen completions (n,) and the rejected ones (m,)."""

    chosen: Tensor
    chosen_reference: Tensor
    rejected: Tensor
    rejected_reference: Tensor


@dataclass(frozen=True)
class Scored:
    """What the scoring pass found out about one micro-batch.

    loss: the step's loss, scalar. coefficients: the loss's derivative by each sequence's
    log-probability under the policy, shape (sequences,).
    """

    loss: Tensor
    coefficients: Tensor


class EffectiveBatchMixin:
    """The dominance loss over a step's whole batch, on top of a TRL trainer.

    A step's samples are a matrix of one row per sample, its columns set by `_pack`; rows are what is
    gathered over processes and what the loss is differentiated by.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        setup = AOTSetup.among(kwargs.get("callbacks"))
        self.aot = setup.args
        self._eval_rows: list[Tensor] = []
        # LoRA's matrices are drawn in TRL's __init__, before Trainer sets the seed
        set_seed(kwargs["args"].seed)
        model, *rest = args
        model = setup.with_trained_adapter(model, kwargs.get("peft_config"))
        super().__init__(model, *rest, **kwargs)
        if setup.adapter_dir and "ref" in self.accelerator.unwrap_model(self.model).peft_config:
            # TRL takes a loaded adapter for the start of training and copies it as the reference;
            # the reference of a trained AOT adapter is the model without it
            self.model.delete_adapter("ref")

    # --- To be given by each trainer ---------------------------------------------------------

    def _pack(self, policy: Tensor, reference: Tensor, batch: dict[str, Any]) -> Tensor:
        """Rows from the log-probabilities of a micro-batch's sequences."""
        raise NotImplementedError

    def _unpack(self, rows: Tensor) -> Completions:
        raise NotImplementedError

    def _distributions(self, completions: Completions) -> tuple[Tensor, Tensor]:
        """The sample that must dominate, and the one it must dominate; in nats."""
        raise NotImplementedError

    def _by_policy(self, gradient: Tensor) -> Tensor:
        """The part of a gradient by rows that belongs to the policy, in the sequences' order."""
        raise NotImplementedError

    def _precomputed_reference(self, batch: dict[str, Any]) -> Tensor | None:
        raise NotImplementedError

    # --- One optimizer step ------------------------------------------------------------------

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, Any]:
        """Hand out a step's micro-batches, scored where there are several of them to be sorted."""
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.aot.aot_scope == "effective_batch" and len(batches) > 1:
            batches = self._score(batches)
        return batches, count

    def _score(self, batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
        self.optimizer.train()  # an averaging optimizer shows other weights after an evaluation
        batches = [self._prepare_inputs(batch) for batch in batches]
        rows = []
        for batch in batches:
            reference = self._reference_logprobs(batch)
            with self._scoring(), self.compute_loss_context_manager():
                policy, _ = self._logprobs(self.model, batch)
            rows.append(self._pack(policy, reference, batch))
        loss, coefficients = self._objective(rows)
        return [{**batch, SCORED: Scored(loss, c)} for batch, c in zip(batches, coefficients, strict=True)]

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """The step's loss, with the gradient that this micro-batch contributes to it."""
        kwargs = {"output_router_logits": True} if self.aux_loss_enabled else {}
        policy, outputs = self._logprobs(model, inputs, **kwargs)
        scored = inputs.get(SCORED) or self._score_differentiable(policy, inputs)
        contribution = (scored.coefficients * policy).sum()
        loss = scored.loss + (contribution - contribution.detach())
        if self.aux_loss_enabled:
            loss = loss + self.router_aux_loss_coef * outputs.aux_loss
        return (loss, outputs) if return_outputs else loss

    def _score_differentiable(self, policy: Tensor, batch: dict[str, Any]) -> Scored:
        reference = self._reference_logprobs(batch)
        loss, (coefficients,) = self._objective([self._pack(policy.detach(), reference, batch)])
        return Scored(loss, coefficients)

    def _objective(self, micro_batches: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """The loss over one sort, and each micro-batch's coefficients.

        Trainer divides every micro-batch's loss by their number, and data parallelism averages
        gradients over processes; the coefficients undo both.
        """
        own = torch.cat(micro_batches).detach()
        everyone, start = self._gather(own)
        self._require_finite(everyone)
        self._record(everyone)
        whole = self.aot.aot_scope == "effective_batch"
        joint = (everyone if whole else own).requires_grad_()
        with torch.enable_grad():
            loss = self._loss(joint)
            (gradient,) = torch.autograd.grad(loss, joint)
        if whole:
            gradient = gradient[start : start + len(own)]
            gradient = gradient * (len(micro_batches) * self.accelerator.num_processes)
        sizes = [len(rows) for rows in micro_batches]
        return loss.detach(), [self._by_policy(g) for g in gradient.split(sizes)]

    def _loss(self, rows: Tensor) -> Tensor:
        upper, lower = self._distributions(self._unpack(rows))
        if not (len(upper) and len(lower)):
            return 0 * rows.sum()  # nothing to compare: no loss, and a gradient of zero
        return dominance_loss(
            upper,
            lower,
            beta=self.beta,
            penalty=self.aot.aot_penalty,
            dominance=self.aot.aot_dominance,
            sort=self.aot.aot_sort,
            soft_sort_strength=self.aot.aot_soft_sort_strength,
            label_smoothing=self.aot.aot_label_smoothing,
        )

    def _gather(self, rows: Tensor) -> tuple[Tensor, int]:
        """The rows of all processes, in rank order, and where this process's own begin."""
        accelerator = self.accelerator
        if accelerator.num_processes == 1:
            return rows, 0
        # processes may hold different numbers of rows: pad, with a column that marks real ones
        marked = torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)
        padded = accelerator.gather(accelerator.pad_across_processes(marked, dim=0))
        present = padded[:, -1] == 1
        counts = present.view(accelerator.num_processes, -1).sum(dim=1)
        return padded[present, :-1], int(counts[: accelerator.process_index].sum())

    # --- Log-probabilities -------------------------------------------------------------------

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
        inputs = {k: v for k, v in batch.items() if k not in NOT_FOR_THE_MODEL and k != SCORED}
        return completion_logprobs(model, completion_mask=batch["completion_mask"], **inputs, **kwargs)

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

    # --- Metrics -----------------------------------------------------------------------------

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
            shortfall = violation(*self._distributions(completions))
            metrics["dominance/violation"] = shortfall.size
            metrics["dominance/violation_rate"] = shortfall.rate
        return {name: value.item() for name, value in metrics.items()}

    def _record(self, rows: Tensor) -> None:
        for name, value in self._metrics_of(rows).items():
            self._metrics["train"][name].append(value)

    # --- Evaluation: once over the whole set, not an average over batches --------------------

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> tuple[None, None, None]:
        """Collect the batch's rows; loss and metrics come from all of them together."""
        batch = self._prepare_inputs(inputs)
        with self._scoring(), self.compute_loss_context_manager():
            policy, _ = self._logprobs(model, batch)
        rows = self._pack(policy, self._reference_logprobs(batch), batch)
        self._eval_rows.append(self.accelerator.gather_for_metrics(rows))
        return None, None, None

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> EvalLoopOutput:
        """Trainer's loop, with the loss and the metrics of the whole evaluation set."""
        self._eval_rows = []
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        rows = torch.cat(self._eval_rows)
        self._eval_rows = []
        self._require_finite(rows)
        metrics = {"loss": self._loss(rows).item(), **self._metrics_of(rows)}
        output.metrics.update({f"{metric_key_prefix}_{k}": v for k, v in metrics.items()})
        return output
