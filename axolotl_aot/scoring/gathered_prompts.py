"""Shared prompts in one row, for attention that gathers the keys and values of each completion's prompt."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from axolotl_aot.scoring.layouts import Layout
from axolotl_aot.scoring.segment_attention import ARGUMENT, Segments
from axolotl_aot.scoring.shared_prompts import (
    Arrangement,
    Groups,
    Segment,
    Sharing,
    arrange,
    by_prompt,
    shared_length,
    targets_in,
    token_rows,
)
from axolotl_aot.scoring.sizes import SequenceSize, Sizes, sequence_sizes, to_host


@dataclass(frozen=True)
class GatheredPrompts:
    """All sequences in one row, those of one prompt behind it.

    Where no two have the same, or the model's attention does not reach over the longest sequence, they lie as
    in another layout, `apart`, which takes `apart_tokens`.
    """

    sharing: Sharing
    apart: Callable[[Tensor, Tensor, Tensor], Layout]
    apart_tokens: Callable[[Sizes], int]

    def __call__(self, input_ids: Tensor, attention_mask: Tensor, completion_mask: Tensor) -> Layout:
        batch = to_host(input_ids, attention_mask, completion_mask)
        sizes = sequence_sizes(batch)
        groups = self._groups(sizes)
        if len(groups) == len(sizes):
            return self.apart(input_ids, attention_mask, completion_mask)
        *starts, places = accumulate((shared_length(group, sizes) for group in groups), initial=0)
        segments = arrange(groups, starts, sizes)
        rows = torch.from_numpy(np.stack(token_rows(batch, segments, places))).to(input_ids.device)
        inputs = {
            "input_ids": rows[:1],
            "position_ids": rows[1:],
            # a mask of four dimensions is none that transformers would make, and is not read
            "attention_mask": torch.ones(1, 1, 1, 1, dtype=torch.bool, device=input_ids.device),
            ARGUMENT: describe(segments, input_ids.device),
        }
        return Layout(inputs, *targets_in(batch, segments, input_ids.device))

    def tokens(self, sample_sizes: Sizes) -> int:
        """What a micro-batch of these samples takes."""
        sizes = [size for sample in sample_sizes for size in sample]
        groups = self._groups(sizes)
        if len(groups) == len(sizes):
            return self.apart_tokens(sample_sizes)
        return sum(shared_length(group, sizes) for group in groups)

    def _groups(self, sizes: list[SequenceSize]) -> Groups:
        if not self.sharing.covers(sizes):
            return [[i] for i in range(len(sizes))]
        groups: Groups = []
        for members in by_prompt(sizes):
            groups += [members] if sizes[members[0]].prompt else [[i] for i in members]
        return groups


def describe(segments: Arrangement, device: torch.device) -> Segments:
    """For attention, on its device; segments without tokens are left out.

    A prompt and the completion that follows it at once are one segment: both are causal, and their keys need
    to be gathered once.
    """
    filled: list[Segment] = []
    for one in segments:
        if filled and _goes_on(filled[-1], one):
            filled[-1] = filled[-1]._replace(length=one.offset + one.length)
        elif one.length:
            filled.append(one)
    keys = torch.from_numpy(np.concatenate([one.seen for one in filled])).to(device)
    queries, seen = [one.length for one in filled], [one.offset + one.length for one in filled]
    ends = [list(accumulate(lengths, initial=0)) for lengths in (queries, seen)]
    query_ends, key_ends = torch.tensor(ends, dtype=torch.int32).to(device)
    return Segments(keys, query_ends, key_ends, queries, seen)


def _goes_on(prompt: Segment, one: Segment) -> bool:
    """Whether all that a segment sees before itself is another one, right before it."""
    return (one.prefix, one.offset) == (prompt.start, prompt.length) and one.start == prompt.places.stop
