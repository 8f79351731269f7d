"""The loss over the whole effective batch, exactly, however it is cut.

The loss compares distributions, so it needs the scores of a whole batch before any of them can be
differentiated. `EffectiveBatchMixin` does that for every number of micro-batches and processes:

1. once per optimizer step, the process's samples are cut anew into micro-batches of even size, and all of
   them but the first are scored without gradients;
2. the training pass of the first one scores it, too; then the scores, a few numbers per sample, are
   gathered over all processes;
3. the objective gives the loss and its derivative by every answer's log-probability, the coefficient;
4. each micro-batch's backward pass goes through the sum of coefficient times log-probability.

With one micro-batch, nothing is scored twice.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from accelerate.utils import DistributedType
from axolotl.utils.logging import get_logger
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import Sampler

from axolotl_aot.config import AOTArgs
from axolotl_aot.scoring.batches import (
    LABEL,
    WEIGHT,
    Batch,
    cut,
    cut_evenly,
    join,
    select,
    sequence_numbers,
    sizes,
    to_batch_order,
    to_sample_order,
)
from axolotl_aot.scoring.head import TokenScores
from axolotl_aot.scoring.scorer import Scorer
from axolotl_aot.training import gathering
from axolotl_aot.training.micro_batches import (
    MICRO_BATCHES,
    POSITIONS,
    SLOT,
    MicroBatchSlot,
    Step,
    accumulation_steps,
    with_positions,
)
from axolotl_aot.training.objective import Loss, Objective, Scores
from axolotl_aot.training.reference import Reference
from axolotl_aot.training.resume import RunState
from axolotl_aot.training.sampling import ShuffledSampler, StratifiedSampler
from axolotl_aot.training.score_checks import require_finite, require_no_rewards
from axolotl_aot.training.score_listener import ScoreListener

LOG = get_logger(__name__)

# Micro-batches that are scored in one forward pass: without gradients one layer's activations are alive,
# not all layers'.
SCORED_AT_ONCE = 4
# Derivatives by hidden states that are kept from scoring to training, so that the head runs once.
SAVED_GRAD_BYTES = 256 * 2**20


class EffectiveBatchMixin:
    """The objective over a step's whole batch, on top of a TRL trainer."""

    aot: AOTArgs
    objective: Objective
    scorer: Scorer
    reference: Reference
    run_state: RunState
    begins_as_reference: bool  # whether policy and reference are known to be the same model before step 1

    # --- Which samples make a batch ----------------------------------------------------------

    @property
    def sorts_effective_batch(self) -> bool:
        """Whether a step's whole batch is sorted, and not each process's micro-batch alone."""
        return self.aot.aot_scope == "effective_batch"

    @property
    def effective_batch_size(self) -> int:
        """Samples of a full optimizer step: micro-batch x accumulation steps x processes."""
        accumulation = self.args.gradient_accumulation_steps
        return self._train_batch_size * accumulation * self.args.world_size

    @property
    def samples_per_sort(self) -> int:
        """How many samples are sorted together."""
        return self.effective_batch_size if self.sorts_effective_batch else self._train_batch_size

    @property
    def data_seed(self) -> int:
        """What the order of the samples is drawn from."""
        return self.args.seed if self.args.data_seed is None else self.args.data_seed

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        """Trainer's hook for a sampler of one's own."""
        if self.args.train_sampling_strategy != "random":
            return super()._get_train_sampler(train_dataset)
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if LABEL in dataset.column_names and self.aot.aot_stratify:
            return StratifiedSampler(dataset[LABEL], self.samples_per_sort, self.data_seed, self._epoch)
        return ShuffledSampler(len(dataset), self.data_seed, self._epoch)

    def _epoch(self) -> int:
        return self._progress()[0]

    def _progress(self) -> tuple[int, int]:
        """The epoch, from 0, and the optimizer steps done in it; as Trainer counts when it resumes."""
        micro_batches = len(self.callback_handler.train_dataloader or [])  # None before training
        steps = -(-micro_batches // self.args.gradient_accumulation_steps)
        return divmod(self.state.global_step, max(steps, 1))

    # --- A step's micro-batches --------------------------------------------------------------

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, Any]:
        """Hand out a step's micro-batches, cut anew and scored where they are sorted together."""
        _, step = self._progress()
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        # accelerate deals micro-batches out to the processes in turn
        micro_batch, processes = self._train_batch_size, self.args.world_size
        first = self.args.process_index * micro_batch
        left = len(self.train_dataset) - step * self.effective_batch_size
        starts = range(first, first + len(batches) * processes * micro_batch, processes * micro_batch)
        batches = [
            with_positions(batch, at, left, self._sequences_per_sample)
            for batch, at in zip(batches, starts, strict=True)
        ]
        if not (self.sorts_effective_batch and batches):
            return [{**batch, SLOT: MicroBatchSlot(Step([None]), 0)} for batch in batches], count
        self.optimizer.train()  # an averaging optimizer shows other weights after an evaluation
        batches = [self._prepare_inputs(batch) for batch in batches]
        micro_batches = self._in_slots(self._cut(batches), accumulation=len(batches))
        return accumulation_steps(micro_batches, len(batches)), count

    def _cut(self, batches: list[Batch]) -> list[Batch]:
        """A step's samples of this process, in micro-batches of even size, the largest first.

        As many as there were, or as `aot_max_tokens_per_micro_batch` asks for on the process that needs
        the most of them.
        """
        limit = self.aot.aot_max_tokens_per_micro_batch
        if len(batches) == 1 and limit is None:
            return batches
        tokens = self.scorer.strategy(batches[0]).tokens
        joined = join(batches, self._sequences_per_sample)
        samples = sizes(joined, self._sequences_per_sample)
        count = len(batches)
        if limit is not None:
            needed = torch.tensor([len(cut(samples, tokens, limit))], device=self.accelerator.device)
            count = int(self.accelerator.gather(needed).max())
        groups = cut_evenly(samples, tokens, count, limit)
        return [select(joined, group, self._sequences_per_sample) for group in groups]

    def _in_slots(self, micro_batches: list[Batch], accumulation: int) -> list[Batch]:
        """The micro-batches with their slots; all but the first are scored."""
        step = Step([None], loss_scale=accumulation / len(micro_batches))
        slots = [MicroBatchSlot(step, 0)]
        saved_bytes = 0
        # in groups of a fixed number, not size: all processes must run as many forward passes
        for start in range(1, len(micro_batches), SCORED_AT_ONCE):
            group = micro_batches[start : start + SCORED_AT_ONCE]
            for scores, tokens in self._score_group(group, save_grad=saved_bytes < SAVED_GRAD_BYTES):
                cached = tokens if tokens.gradient is not None else None
                saved_bytes += 0 if cached is None else cached.gradient.nbytes
                slots.append(MicroBatchSlot(step, len(step.scores), cached))
                step.scores.append(scores)
        return [{**batch, SLOT: slot} for batch, slot in zip(micro_batches, slots, strict=True)]

    # --- Scores ------------------------------------------------------------------------------

    def _score_group(self, micro_batches: list[Batch], save_grad: bool) -> list[tuple[Scores, TokenScores]]:
        """The scores of each micro-batch, and of its tokens, in one forward pass of each model."""
        joined = join(micro_batches, self._sequences_per_sample)
        reference = self.reference.logprobs(joined)
        found = self.scorer.scores_without_gradients(self.model, joined, save_grad=save_grad)
        counts = [len(batch[POSITIONS]) for batch in micro_batches]
        return [
            (
                self._scores_of(batch, found.logprobs[which], reference[which]),
                found.tokens.of(found.lengths, which),
            )
            for which, batch in zip(
                sequence_numbers(counts, self._sequences_per_sample), micro_batches, strict=True
            )
        ]

    def _scores_of(self, batch: Batch, policy: Tensor, reference: Tensor) -> Scores:
        """A batch's log-probabilities, in the order of `Scores`, with what the batch says of its samples.

        policy, reference: in the batch's order, shape (sequences,).
        """
        each = self._sequences_per_sample

        def of_answers(values: Tensor | None) -> Tensor | None:
            return None if values is None else values.to(policy.device).repeat_interleave(each)

        return Scores(
            to_sample_order(policy, each),
            to_sample_order(reference, each),
            label=self._labels(batch, policy),
            weight=of_answers(batch.get(WEIGHT)),
            position=of_answers(batch.get(POSITIONS)),
        )

    def _labels(self, batch: Batch, policy: Tensor) -> Tensor:
        """Of each answer, where the scores are; pairs have no column of labels."""
        if LABEL in batch:
            return batch[LABEL].to(policy.device).bool()
        return torch.arange(len(policy), device=policy.device) % 2 == 0

    @property
    def _sequences_per_sample(self) -> int:
        return self.objective.sequences_per_sample

    # --- Loss and gradient -------------------------------------------------------------------

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """Trainer's, for each of the micro-batches that stand in for one of its own."""
        micro_batches = inputs.get(MICRO_BATCHES)
        if micro_batches is None:
            return self._micro_batch_step(model, inputs, *args, **kwargs)
        loss = torch.zeros((), device=self.args.device)
        for number, batch in enumerate(micro_batches, start=1):
            with nullcontext() if number == len(micro_batches) else self._accumulating(model):
                loss = loss + self._micro_batch_step(model, batch, *args, **kwargs)
        return loss

    def _micro_batch_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Trainer's forward and backward pass of one micro-batch."""
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
        slot = batch.pop(SLOT)
        step = slot.step
        kwargs = {"output_router_logits": True} if self.aux_loss_enabled else {}
        # The first micro-batch has not been scored. Its reference comes first, before activations are kept.
        reference = self.reference.logprobs(batch) if step.loss is None else None
        found = self.scorer.scores(model, batch, cached_scores=slot.cached_scores, **kwargs)
        if reference is not None:
            step.scores[0] = self._scores_of(batch, found.logprobs.detach(), reference)
            step.loss, step.coefficients = self._loss_and_coefficients(step.scores)
        contribution = (step.coefficients[slot.index] * found.logprobs).sum()
        loss = step.loss + (contribution - contribution.detach())
        if self.aux_loss_enabled:
            loss = loss + self.router_aux_loss_coef * found.aux_loss
        loss = step.loss_scale * loss
        return (loss, found) if return_outputs else loss

    def _loss_and_coefficients(self, micro_batches: list[Scores]) -> tuple[Tensor, list[Tensor]]:
        """The loss over what is sorted together, and each micro-batch's coefficients.

        Trainer divides every micro-batch's loss by their number, and data parallelism averages gradients
        over processes; the coefficients undo both.

        Copies are neither sorted nor counted; in `micro_batch` scope they are sorted, as TRL does. Samples
        are put in the step's order, so that ties are broken alike however the batch was cut.
        """
        each, processes = self._sequences_per_sample, self.args.world_size
        own = gathering.join(micro_batches)
        everyone = gathering.gather(own, self.accelerator, each)  # the one exchange of a step
        ordered = gathering.in_order(everyone, each)
        samples = everyone.of(ordered)
        self._check(samples)
        if self.sorts_effective_batch:
            loss, of_samples = self.objective.loss_and_gradient(samples)
            self._record(samples, loss, [samples.label])
            of_everyone = torch.zeros_like(everyone.policy).index_copy(0, ordered, of_samples)
            gradient = len(micro_batches) * processes * of_everyone.chunk(processes)[self.args.process_index]
        else:
            loss, gradient = self.objective.loss_and_gradient(own)
            self._record(samples, loss, list(everyone.label.chunk(processes)))
        parts = gradient.split([len(scores.policy) for scores in micro_batches])
        return loss.value, [to_batch_order(part, each) for part in parts]

    def _check(self, samples: Scores) -> None:
        """A step's scores are finite and, before the first step, of a policy that is still the reference."""
        require_finite(samples, self.state.global_step + 1)
        if self.state.global_step == 0 and self.begins_as_reference:
            require_no_rewards(samples, self.scorer.epsilon, self.reference.sources)

    def _record(self, samples: Scores, loss: Loss, labels_of_sorts: list[Tensor]) -> None:
        """Log the metrics of a step's samples.

        loss: theirs; in `micro_batch` scope that of this process's ones. labels_of_sorts: of what was sorted
        together.
        """
        metrics = self.objective.metrics(samples, loss.coupling)
        if not self.objective.samples.paired:
            metrics["dominance/one_label_steps"] = self._count_one_label(labels_of_sorts)
        for name, value in metrics.items():
            self._metrics["train"][name].append(value)
        for listener in self.score_listeners():
            listener.on_step_scored(self.state, samples)

    def _count_one_label(self, labels_of_sorts: list[Tensor]) -> int:
        """How many sorts of this run, so far and with these, had one label only and so nothing to compare."""
        one_label = sum(bool(labels.all() or not labels.any()) for labels in labels_of_sorts)
        if one_label:
            self.run_state.one_label_steps += one_label
            LOG.warning_once(
                "answers that are sorted together have one label only and contribute no loss; a larger "
                "effective batch makes that rare. dominance/one_label_steps counts such steps."
            )
        return self.run_state.one_label_steps

    def score_listeners(self) -> list[ScoreListener]:
        """The callbacks that are told of scores."""
        return [
            callback for callback in self.callback_handler.callbacks if isinstance(callback, ScoreListener)
        ]
