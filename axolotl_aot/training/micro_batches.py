"""A step's micro-batches: what they have in common, and in which form Trainer is given them."""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from axolotl_aot.scoring.batches import Batch
from axolotl_aot.scoring.head import TokenScores
from axolotl_aot.training.objective import Scores

# Keys of a batch besides those of the collator.
SLOT = "aot_slot"  # its `MicroBatchSlot`
POSITIONS = "aot_positions"  # where each of its samples stands in the step's order
MICRO_BATCHES = "aot_micro_batches"  # in one of Trainer's batches: those that stand in for it


@dataclass
class Step:
    """What micro-batches that are sorted together have in common.

    scores: of each of them; None for the first until its training pass. loss_scale: how many of Trainer's
    accumulation steps there are for each of them; Trainer divides by the number of those. loss: scalar.
    coefficients: of each micro-batch, the loss's derivative by each answer's log-probability under the
    policy, in the scale that Trainer and data parallelism expect.
    """

    scores: list[Scores | None]
    loss_scale: float = 1.0
    loss: Tensor | None = None
    coefficients: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True)
class MicroBatchSlot:
    """Which of its step's micro-batches this is, and the scores of its tokens, where they are known."""

    step: Step
    index: int
    cached_scores: TokenScores | None = None


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
