"""Attention over the segments of one row, each of which may see another one before it.

The queries of each completion get the keys and values of [prompt, completion], gathered from the row. So a
query attends to what it would in a row of its own, and no mask is needed: causal attention, aligned at the
end. The segments travel through the model's forward pass as one more argument, which transformers hands on
to the attention function; that of `install_gathering` reads it.
"""

from collections.abc import Callable
from functools import cache, wraps
from inspect import signature
from typing import Any, NamedTuple
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from axolotl_aot.scoring.attention_kinds import FLASH, attention_kind

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
        dtype = query.dtype
        if torch.is_autocast_enabled(query.device.type):  # which does not know `varlen_attn`
            dtype = torch.get_autocast_dtype(query.device.type)
        if query.is_cuda and dtype in (torch.float16, torch.bfloat16) and not dropout:
            return torch_varlen(query.to(dtype), key.to(dtype), value.to(dtype), segments, scaling)
        key, value = (one.repeat_interleave(query.shape[1] // one.shape[1], dim=1) for one in (key, value))
        return by_segment(query, key, value, segments, scaling, dropout)

    return attend


def torch_varlen(
    query: Tensor, key: Tensor, value: Tensor, segments: Segments, scaling: float | None
) -> Tensor:
    """One call for all segments."""
    from torch.nn.attention.varlen import varlen_attn  # not in every torch that axolotl 0.18 runs with

    result = varlen_attn(
        *(one.squeeze(0).transpose(0, 1) for one in (query, key, value)),
        segments.query_ends,
        segments.key_ends,
        max(segments.queries),
        max(segments.seen),
        scale=scaling,
        window_size=(-1, 0),  # causal, aligned at the end
        **_grouped(varlen_attn),
    )
    return result[None]


@cache
def _grouped(varlen_attn: Callable) -> dict[str, bool]:
    """Fewer heads of keys than of queries: torch 2.11 takes them as they are, 2.12 wants to be told."""
    return {"enable_gqa": True} if "enable_gqa" in signature(varlen_attn).parameters else {}


def by_segment(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: Segments,
    scaling: float | None,
    dropout: float,
) -> Tensor:
    """One call of SDPA for each segment: its last query sees all of its keys. All have as many heads."""
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
    FLASH: transformers_varlen,
}


def install_gathering(attention: str) -> None:
    """Let transformers' attention of this name gather keys and values where the model is given segments.

    Without them it is what it was. A second call does nothing.
    """
    original = ALL_ATTENTION_FUNCTIONS[attention]
    if original in _GATHERING:
        return
    kernel = KERNELS[attention_kind(attention)](original)
    ALL_ATTENTION_FUNCTIONS.register(attention, gathering(original, kernel))


def gathering(original: Callable, kernel: Kernel) -> Callable:
    """An attention function of transformers that calls `kernel` where there are segments."""

    @wraps(original)  # by which it is still known as what it was
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
