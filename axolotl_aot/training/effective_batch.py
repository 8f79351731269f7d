"""The loss over the whole effective batch, exactly, however it is cut.

The loss compares distributions, so it needs the scores of a whole batch before any of them can be
differentiated. `EffectiveBatchMixin` does that for every number of micro-batches and processes:

1. once per optimizer step, the process's samples are cut anew into micro-batches of even size; before the
   first one's training pass all others are scored: those whose graphs the memory holds as in training, the
   rest without gradients;
2. the training pass of the first one scores it, too; then the scores, a few numbers per sample, are
   gathered over all processes;
3. the objective gives the loss and its derivative by every answer's log-probability, the coefficient;
4. each micro-batch's backward pass goes through the sum of coefficient times log-probability: on the graph
   that was kept, which frees it, or on a new one.

With one micro-batch, or with all graphs kept, nothing is computed twice.
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
    Batch,
    cut,
    cut_evenly,
    join,
    select,
    sizes,
    to_batch_order,
)
from axolotl_aot.scoring.forward import CompletionScores
from axolotl_aot.scoring.scorer import Scorer
from axolotl_aot.training import gathering
from axolotl_aot.training.kept_graphs import DDP, KeptGraphs
from axolotl_aot.training.micro_batches import (
    MICRO_BATCHES,
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
from axolotl_aot.training.step_scores import StepScoring, scores_of

LOG = get_logger(__name__)

# Devices on which a short forward pass takes the time of starting its kernels.
STARTS_KERNELS = ("cuda",)


class EffectiveBatchMixin:
    """The objective over a step's whole batch, on top of a TRL trainer."""

    aot: AOTArgs
    objective: Objective
    scorer: Scorer
    reference: Reference
    kept_graphs: KeptGraphs
    longest_sequence: int  # tokens, of the training data
    step_scoring: StepScoring
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
    def token_limit(self) -> int | None:
        """How many tokens a micro-batch may have; None: there are as many micro-batches as the YAML says.

        Where time goes into starting kernels and not into short rows, few large micro-batches are faster. As
        many tokens as a padded micro-batch with the longest sequence has must fit into memory anyway: every
        epoch has one, where a run pads.
        """
        if self.aot.aot_max_tokens_per_micro_batch is not None:
            return self.aot.aot_max_tokens_per_micro_batch
        if self.accelerator.device.type not in STARTS_KERNELS:
            return None
        return self._train_batch_size * self._sequences_per_sample * self.longest_sequence

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
            return [slot for batch in batches for slot in Step([batch], [0]).in_slots()], count
        batches = [self._prepare_inputs(batch) for batch in batches]
        micro_batches, tokens = self._cut(batches)
        step = Step(micro_batches, tokens, loss_scale=len(batches) / len(micro_batches))
        return accumulation_steps(step.in_slots(), len(batches)), count

    def _cut(self, batches: list[Batch]) -> tuple[list[Batch], list[int]]:
        """A step's samples of this process, in micro-batches of even size, the largest first; their tokens.

        As many as there were, or as many as `token_limit` asks for on the process that needs the most.
        """
        limit = self.token_limit
        if len(batches) == 1 and self.aot.aot_max_tokens_per_micro_batch is None:
            return batches, [0]
        tokens = self.scorer.strategy(batches[0]).tokens
        joined = join(batches, self._sequences_per_sample)
        samples = sizes(joined, self._sequences_per_sample)
        count = len(batches)
        if limit is not None:
            needed = torch.tensor([len(cut(samples, tokens, limit))], device=self.accelerator.device)
            count = int(self.accelerator.gather(needed).max())
        groups = cut_evenly(samples, tokens, count, limit)
        micro_batches = [select(joined, group, self._sequences_per_sample) for group in groups]
        return micro_batches, [tokens([samples[i] for i in group]) for group in groups]

    @property
    def _sequences_per_sample(self) -> int:
        return self.objective.sequences_per_sample

    # --- Loss and gradient -------------------------------------------------------------------

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """Trainer's, for each of the micro-batches that stand in for one of its own."""
        micro_batches = inputs.get(MICRO_BATCHES)
        if micro_batches is None:
            return self._training_pass(model, inputs, *args, **kwargs)
        loss = torch.zeros((), device=self.args.device)
        for number, batch in enumerate(micro_batches, start=1):
            with nullcontext() if number == len(micro_batches) else self._accumulating(model):
                loss = loss + self._training_pass(model, batch, *args, **kwargs)
        return loss

    def _training_pass(self, model: nn.Module, batch: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """A micro-batch's; a step's first one comes after the scores of the others.

        It is the one with the most graphs beside it. Where they leave it too little memory, they are dropped.
        """
        slot = batch[SLOT]
        step = slot.step
        if slot.index or slot.is_last:
            return self._micro_batch_step(model, batch, *args, **kwargs)
        self.step_scoring.before_training(step)
        try:
            with self.kept_graphs.first_training_pass(step.tokens[0]):
                return self._micro_batch_step(model, batch, *args, **kwargs)
        except torch.OutOfMemoryError:
            if not step.graphs:
                raise
            self.step_scoring.drop_graphs(step, list(step.graphs))
        model.zero_grad()  # of a backward pass that has not come to its end; there was none before it
        return self._micro_batch_step(model, batch, *args, **kwargs)

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
        found = step.graphs.pop(slot.index, None)
        if step.loss is None:
            found = self._score_first(model, batch, slot)
        elif found is None:
            cached = step.cached_scores.pop(slot.index, None)
            found = self.step_scoring.forward(self._forwards(model, slot), batch, cached_scores=cached)
        contribution = (step.coefficients[slot.index] * found.logprobs).sum()
        loss = step.loss + (contribution - contribution.detach())
        if self.aux_loss_enabled:
            loss = loss + self.router_aux_loss_coef * found.aux_loss
        loss = step.loss_scale * loss
        return (loss, found) if return_outputs else loss

    def _score_first(self, model: nn.Module, batch: Batch, slot: MicroBatchSlot) -> CompletionScores:
        """The forward pass of a step's first micro-batch; then all scores are known, and so is the loss."""
        step = slot.step
        reference = self.reference.logprobs(batch)  # before activations are kept
        with nullcontext() if slot.is_last else self.kept_graphs.forward_pass(step.tokens[0]):
            found = self.step_scoring.forward(self._forwards(model, slot), batch)
        step.scores[0] = scores_of(batch, found.logprobs.detach(), reference, self._sequences_per_sample)
        scores = [step.scores[number] for number in range(len(step.micro_batches))]
        step.loss, step.coefficients = self._loss_and_coefficients(scores)
        return found

    def _forwards(self, model: nn.Module, slot: MicroBatchSlot) -> nn.Module:
        """What runs a micro-batch forward.

        DDP has a part in a step's last forward pass only, the one of the backward pass that exchanges
        gradients. It broadcasts buffers in its first one, and a process whose memory is short may run more
        of them than others.
        """
        without = self.accelerator.distributed_type in DDP and not slot.is_last
        return self.model if without else model

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
