"""Answers decoded in batches, against a loop of full forward passes without a cache and without padding."""

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from axolotl_aot.generation.decoding import Decoding, batches_by_length, end_tokens, generate

DRAWS = 4_000


@pytest.fixture(scope="module")
def model(speaker):
    return AutoModelForCausalLM.from_pretrained(speaker)


@pytest.fixture(scope="module")
def tokenizer(speaker):
    return AutoTokenizer.from_pretrained(speaker)


@pytest.fixture(scope="module")
def prompts(tokenizer) -> list[list[int]]:
    return [tokenizer(text)["input_ids"] for text in ("red cat?", "blue?", "one two three dog bird?", "cat?")]


@torch.no_grad()
def greedy(model, prompt: list[int], ends: list[int], most: int) -> list[int]:
    answer: list[int] = []
    while len(answer) < most and not (answer and answer[-1] in ends):
        logits = model(input_ids=torch.tensor([prompt + answer]), use_cache=False).logits[0, -1]
        answer.append(int(logits.argmax()))
    return answer


def probabilities(model, prompt: list[int], temperature: float) -> np.ndarray:
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt]), use_cache=False).logits[0, -1]
    return (logits.double() / temperature).softmax(-1).numpy()


def drawn(model, prompt: list[int], decoding: Decoding, seed: int = 1) -> np.ndarray:
    """How often each token was drawn as the first of an answer."""
    answers = generate(model, [prompt] * DRAWS, decoding, ends=[2], pad=0, seed=seed)
    return np.bincount([answer[0] for answer in answers], minlength=model.config.vocab_size)


def assert_drawn_from(counts: np.ndarray, expected: np.ndarray) -> None:
    """A chi-square test, of tokens that are expected five times or more; the others together."""
    expected = expected * DRAWS
    often = expected >= 5
    seen = [*counts[often], counts[~often].sum()]
    wanted = [*expected[often], expected[~often].sum()]
    if wanted[-1] < 1e-6:
        assert seen.pop() == 0
        wanted.pop()
    assert chisquare(seen, np.array(wanted) * sum(seen) / sum(wanted)).pvalue > 1e-3


def test_greedy_answers_are_those_of_plain_forward_passes(model, tokenizer, prompts):
    ends = end_tokens(model, tokenizer)
    found = generate(model, prompts, Decoding(12), ends=ends, pad=tokenizer.pad_token_id)
    assert found == [greedy(model, prompt, ends, 12) for prompt in prompts]
    assert any(answer[-1] in ends for answer in found)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_tokens_are_drawn_from_the_models_distribution(model, prompts, temperature):
    expected = probabilities(model, prompts[0], temperature)
    assert_drawn_from(drawn(model, prompts[0], Decoding(1, temperature)), expected)


def test_top_p_takes_the_fewest_tokens_that_reach_it(model, prompts):
    expected = probabilities(model, prompts[0], 1.0)
    kept, total = [], 0.0
    for token in np.argsort(-expected):
        kept.append(token)
        total += expected[token]
        if total >= 0.7:
            break
    assert 1 < len(kept) < 20
    truncated = np.zeros_like(expected)
    truncated[kept] = expected[kept] / total
    assert_drawn_from(drawn(model, prompts[0], Decoding(1, 1.0, 0.7)), truncated)


def test_a_seed_gives_the_same_draws_and_disturbs_no_others(model, prompts):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = generate(model, prompts, Decoding(8, 1.0), ends=[2], pad=0, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert generate(model, prompts, Decoding(8, 1.0), ends=[2], pad=0, seed=3) == first
    assert generate(model, prompts, Decoding(8, 1.0), ends=[2], pad=0, seed=4) != first


def test_the_models_own_generation_config_is_not_followed(model, prompts):
    plain = generate(model, prompts, Decoding(8, 1.0), ends=[2], pad=0, seed=3)
    own = GenerationConfig(
        temperature=0.01, top_k=1, repetition_penalty=9.0, do_sample=True, min_new_tokens=8
    )
    was, model.generation_config = model.generation_config, own
    model.train()
    try:
        assert generate(model, prompts, Decoding(8, 1.0), ends=[2], pad=0, seed=3) == plain
        assert model.generation_config is own and model.training
    finally:
        model.generation_config = was
        model.eval()


def test_batches_hold_each_prompt_once_the_longest_first():
    prompts = [[0] * length for length in (3, 9, 3, 5, 9, 1, 2)]
    assert batches_by_length(prompts, 3) == [[1, 4, 3], [0, 2, 6], [5]]
