"""Sequences in one row for a GPU's own attention, with shared prompts and without, in half precision."""

import pytest
import torch
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import is_flash_attn_2_available, is_flash_attn_4_available

from axolotl_aot.scoring.forward import attach, completion_logprobs
from axolotl_aot.scoring.gathered_prompts import GatheredPrompts, describe
from axolotl_aot.scoring.layouts import binned, binned_tokens, packed_with_lengths, padded
from axolotl_aot.scoring.scorer import Scorer
from axolotl_aot.scoring.segment_attention import Segments, in_place_of_sdpa, install_gathering
from axolotl_aot.scoring.shared_prompts import arrange, sharing_under
from axolotl_aot.scoring.sizes import SequenceSize
from tests.architectures import make
from tests.scoring.test_shared_prompts import alone, collated, gradients, groups

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

SIZES = {"hidden_size": 64, "head_dim": 16}  # flash attention takes multiples of 8
FLASH_PACKAGES = {
    "flash_attention_2": is_flash_attn_2_available(),
    "flash_attention_4": is_flash_attn_4_available(),
}
BACKENDS = [
    "sdpa",
    *(
        pytest.param(name, marks=pytest.mark.skipif(not there, reason=f"needs the package of {name}"))
        for name, there in FLASH_PACKAGES.items()
    ),
]


@pytest.fixture(autouse=True)
def attention_functions():
    """Those of transformers are put back in the end."""
    before = {name: ALL_ATTENTION_FUNCTIONS[name] for name in ("sdpa", *FLASH_PACKAGES)}
    yield
    for name, function in before.items():
        AttentionInterface.register(name, function)


def on_gpu(dtype: torch.dtype, attention: str = "sdpa", **more):
    """A model with weights that bfloat16 can hold."""
    model = make("llama", torch.bfloat16, **SIZES, **more).to("cuda", dtype)
    model.set_attn_implementation(attention)
    return model


def batch_of(sequences) -> dict[str, torch.Tensor]:
    return {name: value.cuda() for name, value in collated(sequences).items()}


def test_torchs_attention_is_a_loop_over_segments():
    """Prompts of 300 and 5 tokens, with 3 and 2 completions, and a sequence of its own."""
    sizes = [SequenceSize(300, n, 0) for n in (40, 1, 129)] + [SequenceSize(5, n, 1) for n in (7, 64)]
    segments = arrange([[0, 1, 2], [3, 4], [5]], [0, 470, 546], [*sizes, SequenceSize(3, 30, 2)])
    lengths = describe(segments, torch.device("cuda"))
    generator = torch.Generator("cuda").manual_seed(0)

    def drawn(heads: int, tokens: int) -> torch.Tensor:
        shape = (1, heads, tokens, 64)
        return torch.randn(shape, generator=generator, device="cuda", dtype=torch.bfloat16)

    inputs = [drawn(4, 579), drawn(2, len(lengths.keys)), drawn(2, len(lengths.keys))]
    slope = drawn(4, 579).transpose(1, 2)
    results = []
    for kernel, dtype in ((in_place_of_sdpa(None), torch.bfloat16), (by_masks, torch.float32)):
        leaves = [one.to(dtype).requires_grad_() for one in inputs]
        result = kernel(None, *leaves, lengths, scaling=0.1)
        results.append([result, *torch.autograd.grad((result * slope.to(dtype)).sum(), leaves)])
    for found, expected in zip(*results, strict=True):
        assert found.shape == expected.shape
        assert (found.float() - expected).norm() <= 0.01 * expected.norm()


def by_masks(_, query, key, value, segments: Segments, *, scaling: float) -> torch.Tensor:
    """By the mathematics: scores of all pairs, and those that are not seen at minus infinity."""
    key, value = (one.repeat_interleave(2, dim=1) for one in (key, value))
    results = []
    parts = (query.split(segments.queries, 2), key.split(segments.seen, 2), value.split(segments.seen, 2))
    for q, k, v in zip(*parts, strict=True):
        hidden = torch.ones(q.shape[2], k.shape[2], device="cuda").triu(k.shape[2] - q.shape[2] + 1).bool()
        scores = (scaling * q @ k.transpose(2, 3)).masked_fill(hidden, -torch.inf)
        results.append(scores.softmax(dim=-1) @ v)
    return torch.cat(results, dim=2).transpose(1, 2)


@pytest.mark.parametrize("autocast", [False, True], ids=["bfloat16", "autocast"])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("attention", BACKENDS)
def test_half_precision_is_as_close_to_float32_as_each_sequence_padded(attention, seed, autocast):
    sequences = groups(seed)
    exact = on_gpu(torch.float32)
    expected = alone(exact, sequences)
    wanted = gradients(exact, expected)
    model = on_gpu(torch.float32 if autocast else torch.bfloat16, attention)
    attach(model)
    install_gathering(attention)
    layout = GatheredPrompts(sharing_under(model.config), binned, binned_tokens)
    batch = batch_of(sequences)
    assert layout(**batch).inputs["input_ids"].shape[0] == 1
    errors = {}
    layouts = {"padded": padded, "packed": packed_with_lengths, "gathered": layout}
    for name, one in layouts.items():
        with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
            found = completion_logprobs(model, **batch, layout=one).logprobs
        slopes = gradients(model, found)
        apart = sum((slopes[n].float() - wanted[n]).square().sum() for n in wanted).sqrt()
        errors[name] = (float((found - expected).norm()), float(apart))
    for name in ("packed", "gathered"):
        for own, other in zip(errors[name], errors["padded"], strict=True):
            assert 0 < own <= 1.5 * other, name


@pytest.mark.parametrize("attention", BACKENDS)
@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing(attention, reentrant):
    sequences = groups(0)
    install_gathering(attention)
    found = []
    for checkpointing in (False, True):
        model = on_gpu(torch.bfloat16, attention).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        attach(model)
        layout = GatheredPrompts(sharing_under(model.config), binned, binned_tokens)
        found.append(
            gradients(model, completion_logprobs(model, **batch_of(sequences), layout=layout).logprobs)
        )
    for name, gradient in found[0].items():
        assert (found[1][name] - gradient).float().norm() <= 0.02 * gradient.float().norm(), name


@pytest.mark.parametrize("attention", BACKENDS)
def test_it_is_chosen_in_half_precision(attention):
    model = on_gpu(torch.bfloat16, attention)
    attach(model)
    found = Scorer(lambda: model, model.device).strategy(batch_of(groups(0)))
    assert isinstance(found.layout, GatheredPrompts) and not found.full_logits


def test_float32_is_exact():
    """A segment at a time, as there is no flash attention for it."""
    sequences = groups(0)
    model = on_gpu(torch.float32)
    expected = alone(model, sequences)
    attach(model)
    scorer = Scorer(lambda: model, model.device)
    assert isinstance(scorer.strategy(batch_of(sequences)).layout, GatheredPrompts)
    found = scorer.scores(model, batch_of(sequences)).logprobs
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
