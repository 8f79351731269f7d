"""In which way a model's completions are scored: with or without padding, with or without all logits.

The short ways rest on how a model's forward pass is built and on what its attention makes of positions
that begin again. Where they do not hold the result would be wrong without a word; so each is compared, on
a few tokens and before it is used, with the long way: every sequence alone, and all its logits.
"""

import logging
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from axolotl_aot.errors import AOTConfigError
from axolotl_aot.scoring.batches import Batch, select
from axolotl_aot.scoring.forward import CompletionScores
from axolotl_aot.scoring.layouts import (
    Layout,
    Sizes,
    binned,
    binned_tokens,
    packed,
    packed_tokens,
    padded,
    padded_tokens,
)

LOG = logging.getLogger(__name__)

PROBE_TOKENS = (48, 27, 21)  # of the sequences that are tried; the last two fill a row as long as the first
KEY = "aot_padding_free"


class Way(NamedTuple):
    """layout: of a batch. tokens: what samples take in it. plain: all logits at once."""

    layout: Callable[[Tensor, Tensor, Tensor], Layout]
    tokens: Callable[[Sizes], int]
    plain: bool = False


PADDED = Way(padded, padded_tokens)
ONE_ROW = Way(packed, packed_tokens)
# Attention that can keep the sequences of a row apart, by transformers' names, and how it does so best:
# a row's cost is linear in its length, or, with SDPA's mask over all pairs of tokens, quadratic.
PADDING_FREE = {
    "flash_attention_2": ONE_ROW,
    "flash_attention_3": ONE_ROW,
    "kernels-community/flash-attn2": ONE_ROW,
    "kernels-community/flash-attn3": ONE_ROW,
    "flex_attention": ONE_ROW,
    "sdpa": Way(binned, binned_tokens),
}


Score = Callable[[Batch, Way], CompletionScores]


def find_way(
    score: Score,
    probe: Batch,
    *,
    attention: str,
    padding_free: bool | None,
    needs_one_row: bool,
    epsilon: float,
    model: str,
) -> Way:
    """The shortest way that gives the long way's log-probabilities.

    Args:
        score: scores a batch in a way, without gradients.
        probe: what to try it on, see `make_probe`; the same on all processes, which must come to the same
            conclusion.
        attention: transformers' name of the model's attention.
        needs_one_row: the model counts all tokens of a row, as the router's loss of a mixture of experts.
        epsilon: of the floating-point type that the model computes in.
        padding_free: `aot_padding_free`; None leaves it to what the attention can.
        model: a name, for messages.

    Raises:
        AOTConfigError: `padding_free` is True, and the attention or the model does not allow it.
    """
    short = PADDING_FREE.get(attention.split("@")[0].split(":")[0])  # a kernel's name may carry its version
    if padding_free and short is None:
        raise AOTConfigError(
            f"`{KEY}: true` with `attn_implementation: {attention}`: it cannot keep the sequences of one row "
            f"apart; use one of {', '.join(PADDING_FREE)}, or remove {KEY}"
        )
    alone = [select(probe, [i], 1) for i in range(len(PROBE_TOKENS))]
    long_way = PADDED._replace(plain=True)
    expected = torch.cat([score(one, long_way).tokens.logprobs for one in alone])
    tolerance = max(1e-5, 2 * epsilon) * (1 + float(expected.abs().mean()))  # what rounding explains, in nats

    def fault_of(way: Way) -> str | None:
        try:
            found = score(probe, way).tokens.logprobs
        except Exception as error:  # whatever an architecture does that its kind does not
            return f"{type(error).__name__}: {error}"
        off = float((found - expected).abs().mean())
        return None if off <= tolerance else f"log-probabilities are off by {off:.2g} nats a token"

    fault = fault_of(PADDED)
    plain = fault is not None
    if plain:
        LOG.warning(
            "%s: all logits are computed and kept, which takes more time and memory, because the way without "
            "them does not fit this model (%s)",
            model,
            fault,
        )
    way = PADDED._replace(plain=plain)
    if padding_free is False or short is None:
        return way
    if needs_one_row:
        short = ONE_ROW
    short = short._replace(plain=plain)
    fault = fault_of(short)
    if fault is None:
        return short
    if padding_free:
        raise AOTConfigError(f"`{KEY}: true` does not fit {model} ({fault}); remove {KEY}")
    LOG.warning("%s is scored with padding, because without it is wrong here (%s)", model, fault)
    return way


def make_probe(batch: Batch) -> Batch:
    """A few short sequences of the batch's own tokens, all of them completion."""
    ids = batch["input_ids"][batch["attention_mask"].bool()]
    ids = ids.repeat(-(-max(PROBE_TOKENS) // len(ids)))[: max(PROBE_TOKENS)]
    position = torch.arange(len(ids), device=ids.device)
    mask = torch.stack([(position < length).long() for length in PROBE_TOKENS])
    rows = torch.stack([ids, ids.flip(0), ids.roll(7)])
    return {"input_ids": rows, "attention_mask": mask, "completion_mask": mask}
