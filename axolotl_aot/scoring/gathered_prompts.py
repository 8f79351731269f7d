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
from torch.nn.functional import scaled_dot_product_attention
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


class Segments(NamedTuple):
    """What attention needs to know of a row's segments.

    keys: where the keys and values of each segment's queries stand in the row, one segment after the other.
    query_ends, key_ends: int32, 0 and where each segment's queries, and gathered keys, end. queries, seen:
    how many there are of each.
    """

    keys: Tensor
    query_ends: Tensor
    key_ends: Tensor
    queries: list[int]
    seen: list[int]


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
    """For attention, on its device; segments without tokens are left out."""
    filled = [one for one in segments if one.length]
    keys = torch.from_numpy(np.concatenate([one.seen for one in filled])).to(device)
    queries, seen = [one.length for one in filled], [one.offset + one.length for one in filled]
    ends = [list(accumulate(lengths, initial=0)) for lengths in (queries, seen)]
    query_ends, key_ends = torch.tensor(ends, dtype=torch.int32).to(device)
    return Segments(keys, query_ends, key_ends, queries, seen)


# --- Attention -----------------------------------------------------------------------------------

# A layer, its queries (1, heads, tokens, size), gathered keys and values (1, their heads, keys, size), and
# segments, to the result (1, tokens, heads, size); further arguments as transformers' attention.
Kernel = Callable[..., Tensor]


def transformers_varlen(original: Callable) -> Kernel:
    """Flash attention as transformers calls it, with all that it knows of windows, soft caps and sinks."""

    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, segments: Segments, **kwargs: Any
    ) -> Tensor:
        kwargs.update(
            cu_seq_lens_q=segments.query_ends,
            cu_seq_lens_k=segments.key_ends,
            max_length_q=max(segments.queries),
            max_length_k=max(segments.seen),
        )
        return original(module, query, key, value, None, **kwargs)[0]

    return attend


def in_place_of_sdpa(original: Callable) -> Kernel:
    """torch's own flash attention on a GPU in half precision; otherwise SDPA, a segment at a time.

    What transformers' SDPA does not read, as soft caps, is not read here.
    """

    def attend(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        segments: Segments,
        *,
        dropout: float = 0.0,
        scaling: float | None = None,
        position_bias: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        if position_bias is not None:
            raise NotImplementedError("a bias of pairs of tokens in attention over segments")
        key, value = (one.repeat_interleave(query.shape[1] // one.shape[1], dim=1) for one in (key, value))
        dtype = query.dtype
        if torch.is_autocast_enabled(query.device.type):  # which does not know `varlen_attn`
            dtype = torch.get_autocast_dtype(query.device.type)
        if query.is_cuda and dtype in (torch.float16, torch.bfloat16) and not dropout:
            return torch_varlen(query.to(dtype), key.to(dtype), value.to(dtype), segments, scaling)
        return by_segment(query, key, value, segments, scaling, dropout)

    return attend


def torch_varlen(
    query: Tensor, key: Tensor, value: Tensor, segments: Segments, scaling: float | None
) -> Tensor:
    """One call for all segments; as many heads of keys and values as of queries."""
    result = varlen_attn(
        *(one.squeeze(0).transpose(0, 1) for one in (query, key, value)),
        segments.query_ends,
        segments.key_ends,
        max(segments.queries),
        max(segments.seen),
        scale=scaling,
        window_size=(-1, 0),  # causal, aligned at the end
    )
    return result[None]


def by_segment(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: Segments,
    scaling: float | None,
    dropout: float,
) -> Tensor:
    """One call of SDPA for each segment: its last query sees all of its keys."""
    results = []
    parts = zip(
        query.split(segments.queries, 2),
        key.split(segments.seen, 2),
        value.split(segments.seen, 2),
        strict=True,
    )
    for q, k, v in parts:
        more = k.shape[2] - q.shape[2]
        mask = q.new_ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(more) if more else None
        results.append(
            scaled_dot_product_attention(
                q, k, v, mask, scale=scaling, dropout_p=dropout, is_causal=mask is None
            )
        )
    return torch.cat(results, dim=2).transpose(1, 2)


KERNELS: dict[str, Callable[[Callable], Kernel]] = {
    "sdpa": in_place_of_sdpa,
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
