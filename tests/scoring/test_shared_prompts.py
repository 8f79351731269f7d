"""Completions that share their prompt's tokens, against each sequence alone, by all logits."""

import random
from collections.abc import Callable

import pytest
import torch
from transformers import AttentionInterface, AutoConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from axolotl_aot.scoring.batches import Collator
from axolotl_aot.scoring.forward import attach, completion_logprobs
from axolotl_aot.scoring.gathered_prompts import GatheredPrompts, describe
from axolotl_aot.scoring.layouts import binned, binned_tokens
from axolotl_aot.scoring.masked_prompts import MaskedPrompts
from axolotl_aot.scoring.segment_attention import install_gathering
from axolotl_aot.scoring.shared_prompts import Sharing, arrange, sharing_under
from axolotl_aot.scoring.sizes import SequenceSize
from tests.architectures import ARCHITECTURES, COMMON, make
from tests.marks import slow_except

Sequences = list[tuple[list[int], list[int]]]  # prompts and completions


def groups(seed: int) -> Sequences:
    """Prompts with one to four completions each, in any order; some of them equal, some nearly so."""
    rng = random.Random(seed)

    def tokens(low: int, high: int) -> list[int]:
        return [rng.randrange(5, COMMON["vocab_size"]) for _ in range(rng.randint(low, high))]

    prompts = [tokens(0, 12), tokens(6, 12), *(tokens(0, 12) for _ in range(rng.randint(0, 2)))]
    longest = max(prompts, key=len)
    prompts += [longest[:-1], [*longest[:-1], 4]]  # one token less; another last token
    found = [(prompt, tokens(1, 9)) for prompt in prompts for _ in range(rng.randint(1, 4))]
    found += [(longest, tokens(1, 9)), found[0]]  # a completion twice is two sequences
    rng.shuffle(found)
    return found


def collated(sequences: Sequences) -> dict[str, torch.Tensor]:
    rows = [{"prompt_ids": prompt, "completion_ids": completion} for prompt, completion in sequences]
    return Collator(["completion_ids"])(rows)


def alone(model, sequences: Sequences) -> torch.Tensor:
    """Each by itself, and by nothing of the package."""
    sums = []
    for prompt, completion in sequences:
        ids = torch.tensor([prompt + completion], device=model.device)
        start = max(len(prompt), 1)
        table = torch.log_softmax(model(input_ids=ids).logits[0, start - 1 : -1].float(), dim=-1)
        sums.append(table.gather(1, ids[0, start:, None]).sum())
    return torch.stack(sums)


def gradients(model, logprobs: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    weights = torch.randn(len(logprobs), generator=torch.Generator().manual_seed(0))
    (weights.to(logprobs) * logprobs).sum().backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def masked(model) -> MaskedPrompts:
    """Prompts shared wherever that saves a token."""
    return MaskedPrompts(sharing_under(model.config)._replace(hidden_size=10**9))


def gathered(model) -> GatheredPrompts:
    install_gathering("sdpa")  # which changes nothing for others: see the last test
    return GatheredPrompts(sharing_under(model.config), binned, binned_tokens)


WAYS: list[Callable] = [masked, gathered]


def assert_scores_as_alone(model, sequences: Sequences, way: Callable, shares: bool = True, **options):
    expected = alone(model, sequences)
    wanted = gradients(model, expected)
    attach(model)
    batch, layout = collated(sequences), way(model)
    apart = binned(**batch).inputs["input_ids"].numel()
    assert (layout(**batch).inputs["input_ids"].numel() < apart) is shares
    found = completion_logprobs(model, **batch, layout=layout, **options).logprobs
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    largest = max(gradient.norm() for gradient in wanted.values())
    for name, gradient in gradients(model, found).items():
        assert (gradient - wanted[name]).norm() <= 1e-5 * max(wanted[name].norm(), 1e-3 * largest), name


@pytest.mark.parametrize("seed", slow_except(range(4), range(30)))
@pytest.mark.parametrize("way", WAYS)
def test_any_groups(way, seed):
    assert_scores_as_alone(make("llama"), groups(seed), way, full_logits=bool(seed % 2))


@pytest.mark.parametrize("name", sorted({*ARCHITECTURES} - {"llama", "mixtral"}))
@pytest.mark.parametrize("way", WAYS)
def test_any_architecture(way, name):
    """Those with a window share their prompts where no sequence is longer."""
    window = {"sliding_window": 32} if "sliding_window" in ARCHITECTURES[name] else {}
    assert_scores_as_alone(make(name, **window), groups(0), way)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("way", WAYS)
def test_gradient_checkpointing(way, reentrant):
    """The forward pass is run again in the backward pass, by the same attention."""
    model = make("llama").train()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    assert_scores_as_alone(model, groups(1), way)


@pytest.mark.parametrize("way", WAYS)
def test_nothing_is_shared_under_a_window_shorter_than_the_longest_sequence(way):
    sequences = groups(2)
    longest = max(len(prompt) + len(completion) for prompt, completion in sequences)
    for window, shares in ((longest, True), (longest - 1, False)):
        assert_scores_as_alone(make("gemma2", sliding_window=window), sequences, way, shares=shares)


@pytest.mark.parametrize("way", WAYS)
def test_a_prompt_is_counted_once(way):
    prompt, completions = list(range(10, 20)), [[20], [21, 22], [23, 24, 25]]
    layout = way(make("llama"))
    found = layout(**collated([(prompt, completion) for completion in completions]))
    assert found.inputs["input_ids"].tolist() == [[*prompt, 20, 21, 22, 23, 24, 25]]
    assert found.inputs["position_ids"].tolist() == [[*range(10), 10, 10, 11, 10, 11, 12]]
    assert found.targets.tolist() == [20, 21, 22, 23, 24, 25]
    assert found.positions.tolist() == [9, 9, 11, 9, 13, 14]  # the prompt's last token serves all three
    assert found.lengths == [1, 2, 3]


def test_a_mask_shares_no_prompt_where_the_longer_row_costs_more():
    short, long = [7] * 10, [8] * 300
    sequences = [(prompt, [9 + i] * 100) for prompt in (short, long) for i in range(2)]
    narrow, wide = (MaskedPrompts(Sharing(None, size)) for size in (32, 4096))
    tokens = [
        [layout(**collated(pair)).inputs["input_ids"].numel() for layout in (narrow, wide)]
        for pair in (sequences[:2], sequences[2:])
    ]
    assert tokens == [[2 * 110, 10 + 200], [300 + 200, 300 + 200]]


@pytest.mark.parametrize(
    ("kind", "values", "sharing"),
    [
        ("llama", {}, Sharing(None, 32)),
        ("gpt2", {}, Sharing(None, 32)),
        ("qwen2", {"max_window_layers": 1, "sliding_window": 9}, Sharing(None, 32)),  # which it does not use
        ("mistral", {"sliding_window": 9}, Sharing(9, 32)),
        ("gemma3_text", {"sliding_window": 9}, Sharing(9, 32)),
        ("llama4_text", {"attention_chunk_size": 9}, Sharing(9, 32)),
        ("gpt_neo", {"window_size": 9, "attention_types": [[["local"], 2]]}, Sharing(9, 32)),
        ("recurrent_gemma", {"attention_window_size": 9}, Sharing(9, 32)),
        ("deepseek_v32", {"index_topk": 9}, None),
        ("qwen3_next", {}, None),
        ("lfm2", {"full_attn_idxs": [1]}, None),
    ],
)
def test_what_a_configuration_allows(kind, values, sharing):
    config = AutoConfig.for_model(kind, **{**COMMON, **values})
    assert sharing_under(config) == sharing


def test_attention_that_gathers_is_what_it_was_without_segments():
    before = ALL_ATTENTION_FUNCTIONS["sdpa"]
    model = make("llama")
    ids = torch.arange(10, 20)[None]
    try:
        AttentionInterface.register("sdpa", sdpa_attention_forward)
        expected = model(ids).logits
        install_gathering("sdpa")
        installed = ALL_ATTENTION_FUNCTIONS["sdpa"]
        install_gathering("sdpa")
        assert ALL_ATTENTION_FUNCTIONS["sdpa"] is installed is not sdpa_attention_forward
        assert torch.equal(model(ids).logits, expected)
    finally:
        AttentionInterface.register("sdpa", before)


def test_a_prompt_and_its_first_completion_are_one_segment():
    """Two prompts of 4 and 3 tokens, with three and two completions, a sequence of its own between."""
    sizes = (
        [SequenceSize(4, n, 0) for n in (2, 1, 5)]
        + [SequenceSize(2, 2, 1)]
        + [SequenceSize(3, n, 2) for n in (6, 1)]
    )
    segments = describe(arrange([[0, 1, 2], [3], [4, 5]], [0, 12, 16], sizes), torch.device("cpu"))
    assert segments.queries == [4 + 2, 1, 5, 2 + 2, 3 + 6, 1]
    assert segments.seen == [6, 4 + 1, 4 + 5, 4, 9, 3 + 1]
    first, second, third = [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 6], [0, 1, 2, 3, 7, 8, 9, 10, 11]
    assert segments.keys.tolist() == [*first, *second, *third, *range(12, 16), *range(16, 25), 16, 17, 18, 25]
