"""Which strategy of scoring is right for a model: with or without padding, with or without all logits.

The fast strategies rest on assumptions about a model's forward pass, and about what its attention makes of
positions that begin again within a row. Where an assumption does not hold the log-probabilities would be
wrong, and nothing would show it. So before a strategy is used it is compared, on a few short sequences,
with the naive reference: each sequence alone, and all its logits.
"""

import logging
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from axolotl_aot.errors import AOTConfigError
from axolotl_aot.scoring.attention_kinds import BY_POSITIONS, FLASH, attention_kind
from axolotl_aot.scoring.batches import Batch, select
from axolotl_aot.scoring.forward import CompletionScores
from axolotl_aot.scoring.gathered_prompts import GatheredPrompts
from axolotl_aot.scoring.layouts import (
    Layout,
    binned,
    binned_tokens,
    packed,
    packed_tokens,
    packed_with_lengths,
    padded,
    padded_tokens,
)
from axolotl_aot.scoring.masked_prompts import MaskedPrompts
from axolotl_aot.scoring.segment_attention import install_gathering
from axolotl_aot.scoring.shared_prompts import Sharing
from axolotl_aot.scoring.sizes import Sizes

LOG = logging.getLogger(__name__)

# Of the sequences that are tried: their tokens, and how many of those are the prompt. The last two have one
# prompt; they and the second fill a row as long as the first.
PROBE = ((48, 0), (25, 0), (17, 8), (14, 8))
PADDING_FREE_KEY = "aot_padding_free"


class ScoringStrategy(NamedTuple):
    """How a batch is scored.

    layout: how its sequences lie in rows. tokens: how many tokens samples take in that layout. full_logits:
    whether all logits are computed at once.
    """

    layout: Callable[[Tensor, Tensor, Tensor], Layout]
    tokens: Callable[[Sizes], int]
    full_logits: bool = False


PADDED = ScoringStrategy(padded, padded_tokens)
ONE_ROW = ScoringStrategy(packed, packed_tokens)
LENGTHS_GIVEN = ScoringStrategy(packed_with_lengths, packed_tokens)
# Attention that can keep the sequences of a row apart, by kind, and the layouts that suit it, the fastest
# first: the cost of a row is linear in its length or, with SDPA's mask over all pairs of tokens, quadratic.
PADDING_FREE = {
    FLASH: (LENGTHS_GIVEN, ONE_ROW),
    BY_POSITIONS: (ONE_ROW,),
    "flex_attention": (ONE_ROW,),
    "sdpa": (ScoringStrategy(binned, binned_tokens),),
}
ONLY_ONE_ROW = {**PADDING_FREE, "sdpa": (ONE_ROW,)}


def masked(sharing: Sharing, attention: str, apart: ScoringStrategy) -> ScoringStrategy:
    layout = MaskedPrompts(sharing)
    return apart._replace(layout=layout, tokens=layout.tokens)


def gathered(sharing: Sharing, attention: str, apart: ScoringStrategy) -> ScoringStrategy:
    install_gathering(attention)
    layout = GatheredPrompts(sharing, apart.layout, apart.tokens)
    return apart._replace(layout=layout, tokens=layout.tokens)


# How completions can share their prompts, by attention's kind and device, the fastest way first: functions of
# what the model allows, the attention's name, and the strategy that shares none.
SHARED_PROMPTS = {
    ("sdpa", "cpu"): (gathered, masked),
    ("sdpa", "cuda"): (gathered, masked),
    (FLASH, "cuda"): (gathered,),
}

Score = Callable[[Batch, ScoringStrategy], CompletionScores]
FaultOf = Callable[[ScoringStrategy], str | None]  # what is wrong with a strategy


def select_strategy(
    score: Score,
    probe: Batch,
    *,
    attention: str,
    padding_free: bool | None,
    needs_one_row: bool,
    sharing: Sharing | None,
    epsilon: float,
    model: str,
) -> ScoringStrategy:
    """The fastest strategy that gives the naive reference's log-probabilities.

    Args:
        score: scores a batch by a strategy, without gradients.
        probe: what to try it on, see `make_probe`; the same on all processes, which must come to the same
            conclusion.
        attention: transformers' name of the model's attention.
        padding_free: `aot_padding_free`; None leaves it to what the attention can.
        needs_one_row: the model's loss counts all tokens of a row, as the router's loss of a mixture of
            experts does.
        sharing: of prompts, as `sharing_under` has it; None where they cannot be shared.
        epsilon: of the floating-point type that the model computes in.
        model: a name, for messages.

    Raises:
        AOTConfigError: `padding_free` is True, and the attention or the model does not allow it.
    """
    kind = attention_kind(attention)
    candidates = (ONLY_ONE_ROW if needs_one_row else PADDING_FREE).get(kind, ())
    if padding_free and not candidates:
        raise AOTConfigError(
            f"`{PADDING_FREE_KEY}: true` with `attn_implementation: {attention}`: it cannot keep the "
            "sequences of one row apart; use flash_attention_2 (or another flash attention), flex_attention "
            f"or sdpa, or remove {PADDING_FREE_KEY}"
        )
    fault_of = _fault_finder(score, probe, epsilon)
    full_logits = _needs_full_logits(fault_of, model)
    slow = PADDED._replace(full_logits=full_logits)
    if padding_free is False or not candidates:
        return slow
    fast, why_not = _first_right([one._replace(full_logits=full_logits) for one in candidates], fault_of)
    if fast is None:
        if padding_free:
            raise AOTConfigError(
                f"`{PADDING_FREE_KEY}: true` does not fit {model} ({why_not}); remove {PADDING_FREE_KEY}"
            )
        LOG.warning("%s is scored with padding, because without it is wrong here (%s)", model, why_not)
        return slow
    ways = SHARED_PROMPTS.get((kind, probe["input_ids"].device.type), ())
    if sharing is None or needs_one_row or not ways:
        return fast
    shared, why_not = _first_right([way(sharing, attention, fast) for way in ways], fault_of)
    if shared is None:
        LOG.warning(
            "%s: completions do not share their prompt's tokens; that is wrong here (%s)", model, why_not
        )
    return shared or fast


def _needs_full_logits(fault_of: FaultOf, model: str) -> bool:
    """Whether the head's log-probabilities are wrong a chunk at a time, with a warning if so."""
    fault = fault_of(PADDED)
    if fault is not None:
        LOG.warning(
            "%s: all logits are computed and kept, which takes more time and memory, because the way without "
            "them does not fit this model (%s)",
            model,
            fault,
        )
    return fault is not None


def _first_right(strategies: list[ScoringStrategy], fault_of: FaultOf) -> tuple[ScoringStrategy | None, str]:
    """The first strategy that is right, or None; and what is wrong with those before it."""
    faults: list[str] = []
    for strategy in strategies:
        fault = fault_of(strategy)
        if fault is None:
            return strategy, "; ".join(faults)
        if fault not in faults:  # once is enough
            faults.append(fault)
    return None, "; ".join(faults)


def _fault_finder(score: Score, probe: Batch, epsilon: float) -> FaultOf:
    """A function that says what is wrong with a strategy on the probe; None where nothing is."""
    alone = [select(probe, [i], 1) for i in range(len(PROBE))]
    naive_reference = PADDED._replace(full_logits=True)
    expected = torch.cat([score(one, naive_reference).tokens.logprobs for one in alone])
    tolerance = max(1e-5, 2 * epsilon) * (1 + float(expected.abs().mean()))  # what rounding explains, in nats

    def fault_of(strategy: ScoringStrategy) -> str | None:
        try:
            found = score(probe, strategy).tokens.logprobs
        except torch.OutOfMemoryError:  # which says nothing about the model
            raise
        except Exception as error:  # an architecture of a new kind may fail in any way
            return f"{type(error).__name__}: {error}"
        off = float((found - expected).abs().mean())
        return None if off <= tolerance else f"log-probabilities are off by {off:.2g} nats a token"

    return fault_of


def make_probe(batch: Batch) -> Batch:
    """A few short sequences of the batch's own tokens, two of them with the same prompt."""
    longest = max(length for length, _ in PROBE)
    ids = batch["input_ids"][batch["attention_mask"].bool()]
    ids = ids.repeat(-(-longest // len(ids)))[:longest]
    rows = torch.stack([ids.roll(7 * number) for number in range(len(PROBE))])
    position = torch.arange(longest, device=ids.device)
    lengths, prompts = torch.tensor(PROBE, device=ids.device).T[:, :, None]
    rows = torch.where(position < prompts, ids, rows)
    real = position < lengths
    return {
        "input_ids": rows,
        "attention_mask": real.long(),
        "completion_mask": (real & (position >= prompts)).long(),
    }
