"""Which strategy of scoring a model gets, and what is said where it is not the shortest."""

import logging

import pytest
import torch

from axolotl_aot.errors import AOTConfigError
from axolotl_aot.scoring.forward import attach, completion_logprobs
from axolotl_aot.scoring.gathered_prompts import GatheredPrompts
from axolotl_aot.scoring.layout_check import (
    LENGTHS_GIVEN,
    ONE_ROW,
    PADDED,
    PADDING_FREE,
    ScoringStrategy,
    make_probe,
    select_strategy,
)
from axolotl_aot.scoring.layouts import binned, binned_tokens
from axolotl_aot.scoring.masked_prompts import MaskedPrompts
from axolotl_aot.scoring.shared_prompts import sharing_under
from tests.architectures import make
from tests.scoring.test_forward import batch

(BINNED,) = PADDING_FREE["sdpa"]
LLAMA = sharing_under(make("llama").config)
GATHERED = GatheredPrompts(LLAMA, binned, binned_tokens)
SHARED = ScoringStrategy(GATHERED, GATHERED.tokens)


def strategy_of(model, **options):
    attach(model)
    arguments = {
        "attention": "sdpa",
        "padding_free": None,
        "needs_one_row": False,
        "sharing": sharing_under(model.config),
        "epsilon": torch.finfo(model.dtype).eps,
        "model": type(model).__name__,
    }

    @torch.no_grad()
    def score(probe, strategy):
        return completion_logprobs(model, **probe, layout=strategy.layout, full_logits=strategy.full_logits)

    strategy = select_strategy(score, make_probe(batch()), **{**arguments, **options})
    if isinstance(strategy.layout, (MaskedPrompts, GatheredPrompts)):
        assert strategy.tokens == strategy.layout.tokens
    return strategy


@pytest.mark.parametrize(
    ("options", "strategy"),
    [
        ({}, SHARED),
        ({"padding_free": True}, SHARED),
        ({"sharing": None}, BINNED),
        ({"padding_free": False}, PADDED),
        ({"attention": "eager"}, PADDED),
        ({"needs_one_row": True}, ONE_ROW),
        ({"attention": "flex_attention"}, ONE_ROW),
        ({"attention": "flash_attention_2"}, LENGTHS_GIVEN),
        ({"attention": "flash_attention_4", "needs_one_row": True}, LENGTHS_GIVEN),
    ],
    # the others would be named by the addresses of functions, and every process names them anew
    ids=lambda value: str(value) if isinstance(value, dict) else None,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_attention_and_the_yaml_decide(options, strategy, dtype, caplog):
    with caplog.at_level(logging.WARNING):
        found = strategy_of(make("llama", dtype), **options)
    assert (found.layout, found.full_logits) == (strategy.layout, strategy.full_logits)
    assert not caplog.text


def test_attention_that_is_not_told_of_segments_gets_a_mask(caplog):
    model = make("llama")
    for layer in model.model.layers:
        original = layer.self_attn.forward
        layer.self_attn.forward = lambda *args, original=original, aot_segments=None, **kwargs: original(
            *args, **kwargs
        )
    with caplog.at_level(logging.WARNING):
        assert strategy_of(model).layout == MaskedPrompts(LLAMA)
    assert not caplog.text


def test_positions_that_do_not_reach_the_attention_are_noticed(caplog):
    """By the places in a row tokens of one sequence are as far apart as they should be; a prompt and the
    second of its completions are not.
    """
    model = make("llama")
    original = model.model.rotary_emb.forward
    model.model.rotary_emb.forward = lambda x, position_ids: original(
        x, torch.arange(position_ids.shape[1]).expand_as(position_ids)
    )
    with caplog.at_level(logging.WARNING):
        assert strategy_of(model) == BINNED
    assert "LlamaForCausalLM: completions do not share their prompt's tokens" in caplog.text
    assert "nats a token" in caplog.text


def test_attention_that_mixes_a_rows_sequences_is_not_used_so(caplog):
    model = make("recurrent_gemma")  # its convolutions run over the whole row
    with caplog.at_level(logging.WARNING):
        assert strategy_of(model) == PADDED
    assert "RecurrentGemmaForCausalLM is scored with padding" in caplog.text and "nats a token" in caplog.text
    message = "`aot_padding_free: true` does not fit RecurrentGemmaForCausalLM"
    with pytest.raises(AOTConfigError, match=message):
        strategy_of(model, padding_free=True)


def test_a_backend_that_cannot_is_an_error_only_where_it_was_asked_for():
    message = "`aot_padding_free: true` with `attn_implementation: eager`.*flash_attention_2.*sdpa"
    with pytest.raises(AOTConfigError, match=message):
        strategy_of(make("llama"), attention="eager", padding_free=True)


def test_a_model_that_is_built_otherwise_is_scored_by_all_logits(caplog):
    model = make("opt", word_embed_proj_dim=32, ffn_dim=64)  # the head's model has no body to stand in for
    with caplog.at_level(logging.WARNING):
        assert strategy_of(model) == PADDED._replace(full_logits=True)
    assert "OPTForCausalLM: all logits are computed and kept" in caplog.text
    assert "OPTForCausalLM is scored with padding" in caplog.text  # positions come from the mask


def test_logits_that_depend_on_each_other_are_noticed(caplog):
    """A head with code of its own after it, which no table of architectures could know."""
    model = make("llama")
    original = model.forward

    def forward(*args, **kwargs):
        outputs = original(*args, **kwargs)
        outputs.logits = outputs.logits - outputs.logits[:, :1]
        return outputs

    model.forward = forward
    with caplog.at_level(logging.WARNING):
        assert strategy_of(model, padding_free=False) == PADDED._replace(full_logits=True)
    assert "log-probabilities are off by" in caplog.text


def test_memory_that_runs_out_is_no_fault_of_the_model():
    """On a full GPU the fast strategies must not be given up for a slow one that takes more."""
    model = make("llama")
    original = model.forward

    def forward(*args, **kwargs):
        if kwargs["input_ids"].shape[0] > 1:  # not where each sequence is scored alone
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(*args, **kwargs)

    model.forward = forward
    with pytest.raises(torch.OutOfMemoryError):
        strategy_of(model)
