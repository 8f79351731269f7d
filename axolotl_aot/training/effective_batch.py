"""The dominance loss over the whole effective batch, exactly, however it is cut.

The loss compares distributions, so it needs the rewards of a whole batch before any of them can be
differentiated. `EffectiveBatchMixin` does that for every number of micro-batches and processes:

1. once per optimizer step, the process's samples are cut anew into micro-batches of even size, and all of
   them but the first are scored without gradients;
2. the first one's training pass scores it, too; then the scores, a few numbers per sample, are gathered
   over all processes;
3. one call of `dominance_loss` gives the loss and, by autograd, its derivative by every sample's
   log-probability, the sample's coefficient;
4. each micro-batch's backward pass goes through the sum of coefficient times log-probability.

With one micro-batch, nothing is scored twice.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from accelerate.utils import DistributedType
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import Sampler

from axolotl_aot.scoring.batches import Batch, cut, cut_evenly, join, select, sizes, split
from axolotl_aot.scoring.head import TokenScores
from axolotl_aot.training.objective import ScoringMixin
from axolotl_aot.training.sampling import ShuffledSampler

PLACE = "aot_place"  # where a micro-batch carries its `Place`
POSITIONS = "aot_positions"  # and where each of its samples stands in the step's order
PARTS = "aot_parts"  # the micro-batches of one of Trainer's accumulation steps

# Micro-batches that are scored in one forward pass: without gradients one layer's activations are alive,
# not all layers'.
SCORED_AT_ONCE = 4
# Derivatives by hidden states that are kept from scoring to training, so that the head runs once.
KEPT_BYTES = 256 * 2**20


@dataclass
class Step:
    """What micro-batches that are sorted together have in common.

    rows: of each of them; None until its training pass, for the first. share: Trainer's accumulation
    steps for each of them, by whose number Trainer divides. loss: scalar. coefficients: of each
    micro-batch, the loss's derivative by each sequence's log-probability under the policy, shape
    (sequences,), in the scale that Trainer and data parallelism expect.
    """

    rows: list[Tensor | None]
    share: float = 1.0
    loss: Tensor | None = None
    coefficients: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True)
class Place:
    """A micro-batch's place in its step, and what scoring has found out about its tokens."""

    step: Step
    index: int
    known: TokenScores | None = None


class EffectiveBatchMixin(ScoringMixin):
    """The dominance loss over a step's whole batch, on top of a TRL trainer."""

    @property
    def _whole(self) -> bool:
        return self.aot.aot_scope == "effective_batch"

    @property
    def _begins_as_reference(self) -> bool:
        """Whether policy and reference are known to be the same model before the first step."""
        return False

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
        """Hand out a step's micro-batches, cut anew and scored where they are sorted together."""
        _, step = self._progress()
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        # accelerate deals micro-batches out to the processes in turn
        micro_batch, processes = self._train_batch_size, self.args.world_size
        first, left = self.args.process_index * micro_batch, self._samples_left(step)
        starts = range(first, first + len(batches) * processes * micro_batch, processes * micro_batch)
        batches = [self._positioned(batch, at, left) for batch, at in zip(batches, starts, strict=True)]
        if not (self._whole and batches):
            return [{**batch, PLACE: Place(Step([None]), 0)} for batch in batches], count
        self.optimizer.train()  # an averaging optimizer shows other weights after an evaluation
        batches = [self._prepare_inputs(batch) for batch in batches]
        parts = self._placed(self._cut(batches), accumulation=len(batches))
        return _entries(parts, len(batches)), count

    def _samples_left(self, step: int) -> int:
        return len(self.train_dataset) - step * self.effective_batch_size

    def _positioned(self, batch: Batch, start: int, end: int) -> Batch:
        """The batch, and where each of its samples stands in the step's order; -1 for copies.

        Where an epoch's samples do not divide, accelerate fills up with copies of its first ones, so
        that all processes have as many micro-batches, and those are full.
        """
        positions = torch.arange(start, start + len(batch["input_ids"]) // self.sides)
        return {**batch, POSITIONS: torch.where(positions < end, positions, -1)}

    def _cut(self, batches: list[Batch]) -> list[Batch]:
        """A step's samples of this process, in micro-batches of even size, the largest first.

        As many as there were, or as `aot_max_tokens_per_micro_batch` asks for on the process that needs
        the most of them.
        """
        limit = self.aot.aot_max_tokens_per_micro_batch
        if len(batches) == 1 and limit is None:
            return batches
        tokens = self._way(batches[0]).tokens
        joined = join(batches, self.sides)
        samples = sizes(joined, self.sides)
        count = len(batches)
        if limit is not None:
            needed = torch.tensor([len(cut(samples, tokens, limit))], device=self.accelerator.device)
            count = int(self.accelerator.gather(needed).max())
        return [select(joined, group, self.sides) for group in cut_evenly(samples, tokens, count)]

    def _placed(self, parts: list[Batch], accumulation: int) -> list[Batch]:
        """The micro-batches with their places; all but the first are scored."""
        step = Step([None], share=accumulation / len(parts))
        places = [Place(step, 0)]
        kept = 0
        # by number, not by size: all processes must run as many forward passes
        for start in range(1, len(parts), SCORED_AT_ONCE):
            group = parts[start : start + SCORED_AT_ONCE]
            for rows, tokens in self._score(group, keep=kept < KEPT_BYTES):
                known = tokens if tokens.gradient is not None else None
                kept += 0 if known is None else known.gradient.nbytes
                places.append(Place(step, len(step.rows), known))
                step.rows.append(rows)
        return [{**part, PLACE: place} for part, place in zip(parts, places, strict=True)]

    def _score(self, parts: list[Batch], keep: bool) -> list[tuple[Tensor, TokenScores]]:
        """The rows of each micro-batch, and its tokens' scores; found in one forward pass of each model."""
        joined = join(parts, self.sides)
        reference = self._reference_logprobs(joined)
        with self._scoring(), self.compute_loss_context_manager():
            scores = self._scores(self.model, joined, keep=keep)
        counts = [len(part[POSITIONS]) for part in parts]
        sequences = split(counts, self.sides)
        tokens = [scores.tokens.of(scores.lengths, which) for which in sequences]
        rows = [
            self._sample_rows(scores.logprobs[which], reference[which], part)
            for which, part in zip(sequences, parts, strict=True)
        ]
        return list(zip(rows, tokens, strict=True))

    def _sample_rows(self, policy: Tensor, reference: Tensor, batch: Batch) -> Tensor:
        """The rows, and a column of the samples' positions."""
        rows = self._weighted(self._pack(policy, reference, batch), batch)
        return torch.cat([rows, batch[POSITIONS].to(rows)[:, None]], dim=1)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """Trainer's, for each of the micro-batches that stand in for one of its own."""
        parts = inputs.get(PARTS)
        if parts is None:
            return self._training_step(model, inputs, *args, **kwargs)
        loss = torch.zeros((), device=self.args.device)
        for part in parts[:-1]:
            with self._accumulating(model):
                loss = loss + self._training_step(model, part, *args, **kwargs)
        for part in parts[-1:]:
            loss = loss + self._training_step(model, part, *args, **kwargs)
        return loss

    def _training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        return super().training_step(*args, **kwargs)

    @contextmanager
    def _accumulating(self, model: nn.Module) -> Iterator[None]:
        """A backward pass that is not its step's last: no exchange of gradients, no step of an engine."""
        state = self.accelerator.gradient_state
        last = state.sync_gradients
        # as Trainer does for its own accumulation steps; accelerate has no public setter
        state._set_sync_gradients(False)
        deepspeed = self.accelerator.distributed_type == DistributedType.DEEPSPEED
        try:
            with nullcontext() if deepspeed else self.accelerator.no_sync(model):
                yield
        finally:
            state._set_sync_gradients(last)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """The step's loss, with the gradient that this micro-batch contributes to it."""
        batch = {**inputs}
        place = batch.pop(PLACE)
        step = place.step
        kwargs = {"output_router_logits": True} if self.aux_loss_enabled else {}
        # of the first one, which has not been scored; before activations are kept
        reference = self._reference_logprobs(batch) if step.loss is None else None
        scores = self._scores(model, batch, known=place.known, **kwargs)
        if reference is not None:
            step.rows[0] = self._sample_rows(scores.logprobs.detach(), reference, batch)
            step.loss, step.coefficients = self._objective(step.rows)
        contribution = (step.coefficients[place.index] * scores.logprobs).sum()
        loss = step.loss + (contribution - contribution.detach())
        if self.aux_loss_enabled:
            loss = loss + self.router_aux_loss_coef * scores.aux_loss
        loss = step.share * loss
        return (loss, scores) if return_outputs else loss

    def _objective(self, micro_batches: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """The loss over one sort, and each micro-batch's coefficients.

        Trainer divides every micro-batch's loss by their number, and data parallelism averages
        gradients over processes; the coefficients undo both.

        Copies are neither sorted nor counted; in `micro_batch` scope they are sorted, as TRL does. Samples
        are put in the step's order: ties are then broken alike however the batch was cut.
        """
        own = torch.cat(micro_batches)
        everyone = self._gather(own)
        joint = everyone.flatten(0, 1)
        positions = joint[:, -1]
        order = positions.argsort()[int((positions < 0).sum()) :]
        samples = joint[order, :-1]
        self._require_finite(samples)
        if self.state.global_step == 0 and self._begins_as_reference:
            self._require_no_rewards(samples)
        self._record(samples, sorts=samples[None] if self._whole else everyone[..., :-1])
        if self._whole:
            kept, scale = order, len(micro_batches) * len(everyone)
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


def _entries(parts: list[Batch], count: int) -> list[dict[str, Any]]:
    """The micro-batches in `count` of Trainer's accumulation steps; it counts in those.

    Where there are fewer, the first ones are left empty: gradients are exchanged in the last.
    """
    bounds = [len(parts) * i // count for i in range(count + 1)]
    groups = [parts[start:end] for start, end in pairwise(bounds)]
    none = parts[0]["input_ids"].new_zeros(0)
    # Trainer counts tokens by the model's main input
    return [
        {"input_ids": torch.cat([none, *(part["input_ids"].flatten() for part in group)]), PARTS: group}
        for group in groups
    ]
