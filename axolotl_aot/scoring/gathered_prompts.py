"""Shared prompts for attention over sequences of different lengths in one row, as flash attention does.

The queries of each completion get the keys and values of [prompt, completion], gathered from the row. So a
query attends to what it would in a row of its own, and no mask is needed: causal attention, aligned at the
end. The segments travel through the model's forward pass as one more argument, which transformers hands on
to the attention function; that of `install_gathering` reads it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from axolotl_aot.scoring.layouts import Layout
from axolotl_aot.scoring.shared_prompts import (
    Arrangement,
    Groups,
    Sharing,
    arrange,
    by_prompt,
    shared_length,
    targets_in,
    token_rows,
)
from axolotl_aot.scoring.sizes import SequenceSize, Sizes, sequence_sizes, to_host

ARGUMENT = "aot_segments"  # of the model's forward pass


class SegmentLengths(NamedTuple):
    """What attention needs to know of a row's segments.

    keys: where the keys and values of each segment's queries stand in the row, one segment after the other.
    query_ends, key_ends: int32, 0 and where each segment's queries, and gathered keys, end. longest_query,
    longest_keys: tokens of the longest of them.
    """

    keys: Tensor
    query_ends: Tensor
    key_ends: Tensor
    longest_query: int
    longest_keys: int


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
            ARGUMENT: segment_lengths(segments, input_ids.device),
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


def segment_lengths(segments: Arrangement, device: torch.device) -> SegmentLengths:
    filled = [one for one in segments if one.length]
    keys = torch.from_numpy(np.concatenate([one.seen for one in filled])).to(device)
    queries, seen = [one.length for one in filled], [one.offset + one.length for one in filled]
    ends = [list(accumulate(lengths, initial=0)) for lengths in (queries, seen)]
    query_ends, key_ends = torch.tensor(ends, dtype=torch.int32).to(device)
    return SegmentLengths(keys, query_ends, key_ends, max(queries), max(seen))


# --- Attention -----------------------------------------------------------------------------------

# A layer, its queries (1, heads, tokens, size), gathered keys and values (1, their heads, keys, size), and
# segments, to the result (1, tokens, heads, size); further arguments as transformers' attention.
Kernel = Callable[..., Tensor]


def transformers_varlen(original: Callable) -> Kernel:
    """Flash attention as transformers calls it, with all that it knows of windows, soft caps and sinks."""

    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, segments: SegmentLengths, **kwargs: Any
    ) -> Tensor:
        kwargs.update(
            cu_seq_lens_q=segments.query_ends,
            cu_seq_lens_k=segments.key_ends,
            max_length_q=segments.longest_query,
            max_length_k=segments.longest_keys,
        )
        return original(module, query, key, value, None, **kwargs)[0]

    return attend


def torch_varlen(original: Callable) -> Kernel:
    """torch's own flash attention, on a GPU in half precision, in place of SDPA."""

    def attend(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        segments: SegmentLengths,
        *,
        dropout: float = 0.0,
        scaling: float | None = None,
        softcap: float | None = None,
        s_aux: Tensor | None = None,
        position_bias: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        if dropout or softcap is not None or s_aux is not None or position_bias is not None:
            raise NotImplementedError("torch's varlen_attn has no dropout, soft cap, sinks or bias")
        groups = query.shape[1] // key.shape[1]
        dtype = query.dtype
        if torch.is_autocast_enabled(query.device.type):  # which does not know this function
            dtype = torch.get_autocast_dtype(query.device.type)
        heads = [
            one.squeeze(0).transpose(0, 1).to(dtype).repeat_interleave(times, dim=1)
            for one, times in ((query, 1), (key, groups), (value, groups))
        ]
        result = varlen_attn(
            *heads,
            segments.query_ends,
            segments.key_ends,
            segments.longest_query,
            segments.longest_keys,
            scale=scaling,
            window_size=(-1, 0),  # causal, aligned at the end
        )
        return result[None]

    return attend


KERNELS: dict[str, Callable[[Callable], Kernel]] = {
    "sdpa": torch_varlen,
    "flash_attention_2": transformers_varlen,
    "flash_attention_3": transformers_varlen,
}


def install_gathering(attention: str) -> None:
    """Let transformers' attention of this name gather keys and values where the model is given segments.

    Without them it is what it was. A second call does nothing.
    """
    original = ALL_ATTENTION_FUNCTIONS[attention]
    if original in _GATHERING:
        return
    ALL_ATTENTION_FUNCTIONS.register(attention, gathering(original, KERNELS[attention](original)))


def gathering(original: Callable, kernel: Kernel) -> Callable:
    """An attention function of transformers that calls `kernel` where there are segments."""

    def forward(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        segments = kwargs.pop(ARGUMENT, None)
        if segments is None:
            return original(module, query, key, value, attention_mask, **kwargs)
        key, value = (one.index_select(2, segments.keys) for one in (key, value))
        return kernel(module, query, key, value, segments, **kwargs), None

    _GATHERING.add(forward)
    return forward


_GATHERING: WeakSet[Callable] = WeakSet()
