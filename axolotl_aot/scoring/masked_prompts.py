"""Shared prompts for attention that takes a mask over all pairs of a row's tokens, as SDPA does."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from axolotl_aot.scoring.layouts import Layout, binned, first_fit
from axolotl_aot.scoring.shared_prompts import (
    Groups,
    Sharing,
    arrange,
    by_prompt,
    shared_length,
    targets_in,
    token_rows,
)
from axolotl_aot.scoring.sizes import SequenceSize, Sizes, sequence_sizes, to_host

# To how many keys, in hidden sizes, a query may attend in the time that a layer's matrix products take for a
# token. Measured on a CPU.
KEYS_PER_HIDDEN_SIZE = 3


class Plan(NamedTuple):
    """Groups of sequences, the row and column where each begins, and the rows' length."""

    groups: Groups
    places: list[tuple[int, int]]
    width: int

    @property
    def rows(self) -> int:
        return 1 + max(row for row, _ in self.places)


@dataclass(frozen=True)
class MaskedPrompts:
    """Rows in bins, of groups that share a prompt.

    A prompt is shared where that saves time, as attention in a longer row costs more. Otherwise, and where
    the model's attention does not reach over the longest sequence, the layout is `binned`.
    """

    sharing: Sharing

    def __call__(self, input_ids: Tensor, attention_mask: Tensor, completion_mask: Tensor) -> Layout:
        batch = to_host(input_ids, attention_mask, completion_mask)
        sizes = sequence_sizes(batch)
        plan = self._plan(sizes)
        if len(plan.groups) == len(sizes):
            return binned(input_ids, attention_mask, completion_mask)
        starts = [row * plan.width + column for row, column in plan.places]
        segments = arrange(plan.groups, starts, sizes)
        ids, position_ids = token_rows(batch, segments, plan.rows * plan.width)
        # what is left of a row: tokens that see themselves alone, as attention to nothing is not a number
        segment, prefix = np.arange(len(ids)), np.arange(len(ids))
        for one in segments:
            segment[one.places] = one.start
            prefix[one.places] = one.prefix
        rows = torch.from_numpy(np.stack([ids, position_ids, segment, prefix])).to(input_ids.device)
        ids, position_ids, segment, prefix = rows.view(4, plan.rows, plan.width)
        mask = prefix_mask(segment, prefix)
        inputs = {"input_ids": ids, "position_ids": position_ids, "attention_mask": mask}
        return Layout(inputs, *targets_in(batch, segments, input_ids.device))

    def tokens(self, sample_sizes: Sizes) -> int:
        """What a micro-batch of these samples takes, with what is left of rows."""
        plan = self._plan([size for sample in sample_sizes for size in sample])
        return plan.rows * plan.width

    def _plan(self, sizes: list[SequenceSize]) -> Plan:
        apart = _fit([[i] for i in range(len(sizes))], sizes)
        if not self.sharing.covers(sizes):
            return apart
        groups = [group for members in by_prompt(sizes) for group in self._worth_sharing(members, sizes)]
        if len(groups) == len(sizes):
            return apart
        return min(_fit(groups, sizes), apart, key=lambda plan: plan.rows * self._cost(plan.width))

    def _worth_sharing(self, members: list[int], sizes: list[SequenceSize]) -> Groups:
        """Sequences of one prompt in groups, each grown as long as that is cheaper than another row."""
        groups: Groups = []
        length = 0
        for i in sorted(members, key=lambda i: sizes[i].completion):
            longer = length + sizes[i].completion
            if groups and self._cost(longer) - self._cost(length) < self._cost(sizes[i].total):
                groups[-1].append(i)
                length = longer
            else:
                groups.append([i])
                length = sizes[i].total
        return groups

    def _cost(self, length: int) -> float:
        """Of a row, in matrix products of a token."""
        return length + length**2 / (KEYS_PER_HIDDEN_SIZE * self.sharing.hidden_size)


def _fit(groups: Groups, sizes: list[SequenceSize]) -> Plan:
    lengths = [shared_length(group, sizes) for group in groups]
    width = max(lengths)
    return Plan(groups, first_fit(lengths, width), width)


def prefix_mask(segment: Tensor, prefix: Tensor) -> Tensor:
    """Which tokens of a row each of them sees: those before it, of its own segment and of the prompt's.

    segment, prefix: a number for the segment that a token is of, and for that of its prompt; its own where it
    has none; shape (rows, width). Returns booleans, (rows, 1, width, width).
    """
    keys = segment[:, None, :]
    seen = (keys == segment[:, :, None]) | (keys == prefix[:, :, None])
    return seen.tril()[:, None]
