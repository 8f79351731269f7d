"""The dominance loss over the whole effective batch, exactly, however it is cut.

The loss compares distributions, so it needs the rewards of a whole batch before any of them can be
differentiated. `EffectiveBatchMixin` does that for every number of micro-batches and processes:

1. once per optimizer step, every micro-batch is scored without gradients;
2. the scores, a few numbers per sample, are gathered over all processes;
3. one call of `dominance_loss` gives the loss and, by autograd, its derivative by every sample's
   log-probability, the sample's coefficient;
4. each micro-batch's backward pass goes through the sum of coefficient times log-probability.

With one accumulation step, the forward pass that is differentiated is also the one that scores.

May import `axolotl_aot.sampling`, `scoring`; torch and datasets, and nothing of axolotl.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import Sampler

from axolotl_aot.sampling import ShuffledSampler
from axolotl_aot.scoring import ScoringMixin

SCORED = "aot_scored"  # where a scored micro-batch carries its `Scored`
POSITION = "aot_position"  # and every one, where its first sample stands in the epoch's order


@dataclass(frozen=True)
class Scored:
    """What the scoring pass found out about one micro-batch.

    loss: of what is sorted together, scalar. coefficients: the loss's derivative by each sequence's
    log-probability under the policy, shape (sequences,).
    """

    loss: Tensor
    coefficients: Tensor


class EffectiveBatchMixin(ScoringMixin):
    """The dominance loss over a step's whole batch, on top of a TRL trainer."""

    @property
    def _whole(self) -> bool:
        return self.aot.aot_scope == "effective_batch"

    @property
    def effective_batch_size(self) -> int:
        """Samples of a full optimizer step: micro-batch x accumulation steps x processes."""
        accumulation = self.args.gradient_accumulation_steps
        return self._train_batch_size * accumulation * self.args.world_size

    @property
    def _sort_size(self) -> int:
        """Samples that are sorted together."""
        return self.effective_batch_size if self._whole else self._train_batch_size

    # --- The order of the samples ------------------------------------------------------------

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        """Trainer's place for a sampler of one's own."""
        if self.args.train_sampling_strategy != "random":
            return super()._get_train_sampler(train_dataset)
        return self._sampler(self.train_dataset if train_dataset is None else train_dataset)

    def _sampler(self, dataset: Dataset) -> ShuffledSampler:
        return ShuffledSampler(len(dataset), self._data_seed, self._epoch)

    @property
    def _data_seed(self) -> int:
        return self.args.seed if self.args.data_seed is None else self.args.data_seed

    def _epoch(self) -> int:
        return self._progress()[0]

    def _progress(self) -> tuple[int, int]:
        """The epoch, from 0, and the optimizer steps done in it; as Trainer counts when it resumes."""
        micro_batches = len(self.callback_handler.train_dataloader or [])  # None before training
        steps = -(-micro_batches // self.args.gradient_accumulation_steps)
        return divmod(self.state.global_step, max(steps, 1))

    # --- One optimizer step ------------------------------------------------------------------

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, Any]:
        """Hand out a step's micro-batches, scored where there are several of them to be sorted."""
        _, step = self._progress()
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        # accelerate deals micro-batches out to the processes in turn
        micro_batch, processes = self._train_batch_size, self.args.world_size
        start = step * self.effective_batch_size + self.args.process_index * micro_batch
        positions = range(start, start + len(batches) * processes * micro_batch, processes * micro_batch)
        batches = [{**batch, POSITION: at} for batch, at in zip(batches, positions, strict=True)]
        if self._whole and len(batches) > 1:
            batches = self._score(batches)
        return batches, count

    def _score(self, batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
        self.optimizer.train()  # an averaging optimizer shows other weights after an evaluation
        batches = [self._prepare_inputs(batch) for batch in batches]
        loss, coefficients = self._objective(
            [self._marked(self._rows(self.model, batch), batch[POSITION]) for batch in batches]
        )
        return [{**batch, SCORED: Scored(loss, c)} for batch, c in zip(batches, coefficients, strict=True)]

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """The step's loss, with the gradient that this micro-batch contributes to it."""
        batch = {**inputs}
        scored, position = batch.pop(SCORED, None), batch.pop(POSITION)
        kwargs = {"output_router_logits": True} if self.aux_loss_enabled else {}
        policy, outputs = self._logprobs(model, batch, **kwargs)
        if scored is None:
            scored = self._score_differentiable(policy, batch, position)
        contribution = (scored.coefficients * policy).sum()
        loss = scored.loss + (contribution - contribution.detach())
        if self.aux_loss_enabled:
            loss = loss + self.router_aux_loss_coef * outputs.aux_loss
        return (loss, outputs) if return_outputs else loss

    def _score_differentiable(self, policy: Tensor, batch: dict[str, Any], position: int) -> Scored:
        rows = self._weighted(self._pack(policy.detach(), self._reference_logprobs(batch), batch), batch)
        loss, (coefficients,) = self._objective([self._marked(rows, position)])
        return Scored(loss, coefficients)

    def _marked(self, rows: Tensor, position: int) -> Tensor:
        """The rows, and a column that is 1 for samples and 0 for copies.

        Where an epoch's samples do not divide, accelerate fills up with copies of its first ones, so
        that all processes have as many micro-batches, and those are full.
        """
        positions = position + torch.arange(len(rows), device=rows.device)
        is_sample = positions < len(self.train_dataset)
        return torch.cat([rows, is_sample.to(rows.dtype)[:, None]], dim=1)

    def _objective(self, micro_batches: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """The loss over one sort, and each micro-batch's coefficients.

        Trainer divides every micro-batch's loss by their number, and data parallelism averages
        gradients over processes; the coefficients undo both.

        Copies are neither sorted nor counted; in `micro_batch` scope they are sorted, as TRL does.
        """
        own = torch.cat(micro_batches)
        everyone = self._gather(own)
        joint = everyone.flatten(0, 1)
        is_sample = joint[:, -1] == 1
        samples = joint[is_sample, :-1]
        self._require_finite(samples)
        self._record(samples, sorts=samples[None] if self._whole else everyone[..., :-1])
        if self._whole:
            kept, scale = is_sample, len(micro_batches) * len(everyone)
            mine = slice(self.args.process_index * len(own), (self.args.process_index + 1) * len(own))
        else:
            joint, kept, scale, mine = own, slice(None), 1, slice(None)
        joint = joint[:, :-1].detach().requires_grad_()
        with torch.enable_grad():
            loss = self._loss(joint[kept])
            (gradient,) = torch.autograd.grad(loss, joint)
        sizes = [len(rows) for rows in micro_batches]
        return loss.detach(), [self._by_policy(g) for g in (scale * gradient[mine]).split(sizes)]

    def _gather(self, rows: Tensor) -> Tensor:
        """The rows of each process, in rank order: shape (processes, rows, columns).

        The one exchange of a step. All processes have equally many rows, copies included.
        """
        return self.accelerator.gather(rows).view(self.args.world_size, *rows.shape)

    def _record(self, samples: Tensor, sorts: Tensor) -> None:
        """Log the metrics of a step's samples.

        sorts: what was sorted together, shape (sorts, samples, columns); one, or in `micro_batch` scope
        one per process.
        """
        for name, value in self._metrics_of(samples).items():
            self._metrics["train"][name].append(value)
