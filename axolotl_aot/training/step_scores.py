"""Scores of a step's micro-batches before they are trained, with their graphs or without gradients."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from axolotl_aot.scoring.batches import (
    LABEL,
    WEIGHT,
    Batch,
    join,
    sequence_numbers,
    to_sample_order,
)
from axolotl_aot.scoring.forward import CompletionScores
from axolotl_aot.scoring.scorer import Scorer
from axolotl_aot.training.kept_graphs import KeptGraphs
from axolotl_aot.training.micro_batches import POSITIONS, Step
from axolotl_aot.training.objective import Scores
from axolotl_aot.training.reference import Reference

# Micro-batches that are scored in one forward pass: without gradients one layer's activations are alive,
# not all layers'.
SCORED_AT_ONCE = 4
# Derivatives by hidden states that are kept from scoring to training, so that the head runs once.
SAVED_GRAD_BYTES = 256 * 2**20


class StepScoring:
    """Scores the steps of a TRL trainer's run.

    sequences_per_sample: 2 for pairs. kept_graphs: how many graphs there is memory for.
    """

    def __init__(
        self,
        trainer: Trainer,
        scorer: Scorer,
        reference: Reference,
        kept_graphs: KeptGraphs,
        sequences_per_sample: int,
    ):
        self._trainer = trainer
        self._scorer = scorer
        self._reference = reference
        self._kept_graphs = kept_graphs
        self._each = sequences_per_sample

    def before_training(self, step: Step) -> None:
        """Score all micro-batches but the first, which its training pass scores.

        It is time for that after the callbacks of the step's beginning, which may change the model.
        """
        self._trainer.optimizer.train()  # an averaging optimizer shows other weights after an evaluation
        count = self._kept_graphs.count(step.tokens)
        numbers = range(1, len(step.micro_batches))
        # first those without a graph, while no other graph is held
        self._without_graphs(step, numbers[count:])
        self._with_graphs(step, numbers[:count])
        self._without_graphs(step, [i for i in numbers if i not in step.scores])

    def forward(self, model: nn.Module, batch: Batch, **kwargs: Any) -> CompletionScores:
        """The forward pass of a training pass; arguments as `completion_logprobs`."""
        if self._trainer.aux_loss_enabled:
            kwargs["output_router_logits"] = True
        return self._scorer.scores(model, batch, **kwargs)

    def drop_graphs(self, step: Step, numbers: Sequence[int]) -> None:
        """Memory was short with the graphs that are held: hold fewer, now and from now on."""
        self._kept_graphs.out_of_memory()
        for number in numbers:
            step.graphs.pop(number, None)

    def _with_graphs(self, step: Step, numbers: Sequence[int]) -> None:
        """As the micro-batches' training passes would, and keep the graphs, while there is memory."""
        trainer = self._trainer
        trainer.model.train()
        references = self._references(step, numbers)
        try:
            for number, reference in zip(numbers, references, strict=True):
                batch, tokens = step.micro_batches[number], step.tokens[number]
                with self._kept_graphs.forward_pass(tokens), trainer.compute_loss_context_manager():
                    found = self.forward(trainer.model, batch)
                step.scores[number] = scores_of(batch, found.logprobs.detach(), reference, self._each)
                step.graphs[number] = found
        except torch.OutOfMemoryError:
            self.drop_graphs(step, numbers[len(step.graphs) // 2 :])

    def _without_graphs(self, step: Step, numbers: Sequence[int]) -> None:
        """Several micro-batches at a time, without gradients; and save the head's derivatives, where these
        are not too large.
        """
        saved_bytes = 0
        for group in _groups(numbers):
            joined, parts = self._joined(step, group)
            reference = self._reference.logprobs(joined)
            found = self._scorer.scores_without_gradients(
                self._trainer.model, joined, save_grad=saved_bytes < SAVED_GRAD_BYTES
            )
            for number, which in zip(group, parts, strict=True):
                batch = step.micro_batches[number]
                step.scores[number] = scores_of(batch, found.logprobs[which], reference[which], self._each)
                tokens = found.tokens.of(found.lengths, which)
                if tokens.gradient is not None:
                    saved_bytes += tokens.gradient.nbytes
                    step.cached_scores[number] = tokens

    def _references(self, step: Step, numbers: Sequence[int]) -> list[Tensor]:
        """The reference's log-probabilities of each micro-batch's sequences."""
        found = []
        for group in _groups(numbers):
            joined, parts = self._joined(step, group)
            reference = self._reference.logprobs(joined)
            found += [reference[which] for which in parts]
        return found

    def _joined(self, step: Step, numbers: Sequence[int]) -> tuple[Batch, list[list[int]]]:
        """Some micro-batches as one; and which of its sequences belong to each of them."""
        micro_batches = [step.micro_batches[number] for number in numbers]
        samples = [len(batch[POSITIONS]) for batch in micro_batches]
        return join(micro_batches, self._each), sequence_numbers(samples, self._each)


def _groups(numbers: Sequence[int]) -> list[Sequence[int]]:
    """In groups of a fixed number, not size: engines that shard want as many forward passes everywhere."""
    return [numbers[start : start + SCORED_AT_ONCE] for start in range(0, len(numbers), SCORED_AT_ONCE)]


def scores_of(batch: Batch, policy: Tensor, reference: Tensor, sequences_per_sample: int) -> Scores:
    """A batch's log-probabilities, in the order of `Scores`, with what the batch says of its samples.

    policy, reference: in the batch's order, shape (sequences,).
    """

    def of_answers(values: Tensor | None) -> Tensor | None:
        return None if values is None else values.to(policy.device).repeat_interleave(sequences_per_sample)

    return Scores(
        to_sample_order(policy, sequences_per_sample),
        to_sample_order(reference, sequences_per_sample),
        label=_labels(batch, policy),
        weight=of_answers(batch.get(WEIGHT)),
        position=of_answers(batch.get(POSITIONS)),
    )


def _labels(batch: Batch, policy: Tensor) -> Tensor:
    """Of each answer, where the scores are; pairs have no column of labels."""
    if LABEL in batch:
        return batch[LABEL].to(policy.device).bool()
    return torch.arange(len(policy), device=policy.device) % 2 == 0
