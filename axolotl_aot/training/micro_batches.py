"""A step's micro-batches: what they have in common, and in which form Trainer is given them."""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from axolotl_aot.scoring.batches import Batch
from axolotl_aot.scoring.forward import CompletionScores
from axolotl_aot.scoring.head import TokenScores
from axolotl_aot.training.objective import Scores

# Keys of a batch besides those of the collator.
SLOT = "aot_slot"  # its `MicroBatchSlot`
POSITIONS = "aot_positions"  # where each of its samples stands in the step's order
MICRO_BATCHES = "aot_micro_batches"  # in one of Trainer's batches: those that stand in for it


@dataclass
class Step:
    """What micro-batches that are sorted together have in common.

    micro_batches: in the order of their training passes. tokens: of each of them. loss_scale: how many of
    Trainer's accumulation steps there are for each of them; Trainer divides by the number of those.

    By a micro-batch's number: its scores; its completions' scores with the graph of the forward pass, where
    that is kept until the training pass; the scores of its tokens, where the head need not run again.

    loss: scalar. coefficients: of each micro-batch, the loss's derivative by each answer's log-probability
    under the policy, in the scale that Trainer and data parallelism expect.
    """

    micro_batches: list[Batch]
    tokens: list[int]
    loss_scale: float = 1.0
    scores: dict[int, Scores] = field(default_factory=dict)
    graphs: dict[int, CompletionScores] = field(default_factory=dict)
    cached_scores: dict[int, TokenScores] = field(default_factory=dict)
    loss: Tensor | None = None
    coefficients: list[Tensor] = field(default_factory=list)

    def in_slots(self) -> list[dict[str, Any]]:
        """The micro-batches, each with its slot."""
        return [{**batch, SLOT: MicroBatchSlot(self, i)} for i, batch in enumerate(self.micro_batches)]


@dataclass(frozen=True)
class MicroBatchSlot:
    """Which of its step's micro-batches this is, from 0."""

    step: Step
    index: int

    @property
    def is_last(self) -> bool:
        """Whether gradients are exchanged in its backward pass."""
        return self.index == len(self.step.micro_batches) - 1


def with_positions(batch: Batch, start: int, end: int, sequences_per_sample: int) -> Batch:
    """The batch, and where each of its samples stands in the step's order; -1 for copies.

    start: the first one's position. end: the number of samples that are left of the epoch.

    Where an epoch's samples do not divide, accelerate fills up with copies of its first ones, so
    that all processes have as many micro-batches, and those are full.
    """
    positions = torch.arange(start, start + len(batch["input_ids"]) // sequences_per_sample)
    return {**batch, POSITIONS: torch.where(positions < end, positions, -1)}


def accumulation_steps(micro_batches: list[Batch], count: int) -> list[dict[str, Any]]:
    """The micro-batches, dealt out to `count` of Trainer's accumulation steps; it counts in those.

    Where there are fewer, the first ones are left empty: gradients are exchanged in the last.
    """
    bounds = [len(micro_batches) * i // count for i in range(count + 1)]
    groups = [micro_batches[start:end] for start, end in pairwise(bounds)]
    none = micro_batches[0]["input_ids"].new_zeros(0)
    # Trainer counts tokens by the model's main input
    return [
        {
            "input_ids": torch.cat([none, *(batch["input_ids"].flatten() for batch in group)]),
            MICRO_BATCHES: group,
        }
        for group in groups
    ]
