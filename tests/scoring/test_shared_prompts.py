"""Completions that share their prompt's tokens, against each sequence alone and against brute force."""

import random

import pytest
import torch

from axolotl_aot.scoring.batches import Collator
from axolotl_aot.scoring.forward import attach, completion_logprobs
from axolotl_aot.scoring.layouts import binned
from axolotl_aot.scoring.shared_prompts import SharedPrompts
from tests.architectures import COMMON, make

ALWAYS = SharedPrompts(span=None, keys_per_token=10**9)  # where it saves a token


def groups(seed: int) -> list[tuple[list[int], list[int]]]:
    """Prompts with one to four completions each, in any order; some of them equal, some nearly so."""
    rng = random.Random(seed)

    def tokens(low: int, high: int) -> list[int]:
        return [rng.randrange(5, COMMON["vocab_size"]) for _ in range(rng.randint(low, high))]

    prompts = [tokens(0, 12) for _ in range(rng.randint(1, 4))]
    longest = max(prompts, key=len)
    prompts += [longest[:-1], [*longest[:-1], 4]]  # one token less, another last token
    found = [(prompt, tokens(1, 9)) for prompt in prompts for _ in range(rng.randint(1, 4))]
    found.append(rng.choice(found))  # a completion twice is two sequences
    rng.shuffle(found)
    return found


def collated(sequences: list[tuple[list[int], list[int]]]) -> dict[str, torch.Tensor]:
    rows = [{"prompt_ids": prompt, "completion_ids": completion} for prompt, completion in sequences]
    return Collator(["completion_ids"])(rows)


def alone(model, sequences) -> torch.Tensor:
    """Each by itself, by all logits, and by nothing of the package."""
    sums = []
    for prompt, completion in sequences:
        ids = torch.tensor([prompt + completion])
        start = max(len(prompt), 1)
        table = torch.log_softmax(model(input_ids=ids).logits[0, start - 1 : -1], dim=-1)
        sums.append(table.gather(1, ids[0, start:, None]).sum())
    return torch.stack(sums)


@pytest.mark.parametrize("full_logits", [False, True], ids=["", "full logits"])
@pytest.mark.parametrize("seed", range(6))
def test_any_groups_have_the_log_probabilities_and_gradients_of_each_sequence_alone(seed, full_logits):
    model = make(random.Random(seed).choice(["llama", "qwen3", "gpt2", "phi"]))
    sequences = groups(seed)
    weights = torch.randn(len(sequences), generator=torch.Generator().manual_seed(seed))
    expected = alone(model, sequences)
    wanted = weighted_gradients(model, expected, weights)
    attach(model)
    batch = collated(sequences)
    assert ALWAYS(**batch).inputs["input_ids"].numel() < binned(**batch).inputs["input_ids"].numel()
    found = completion_logprobs(model, **batch, layout=ALWAYS, full_logits=full_logits).logprobs
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    largest = max(gradient.norm() for gradient in wanted.values())
    for name, gradient in weighted_gradients(model, found, weights).items():
        assert (gradient - wanted[name]).norm() <= 1e-5 * max(wanted[name].norm(), 1e-3 * largest), name


def weighted_gradients(model, logprobs, weights) -> dict[str, torch.Tensor]:
    model.zero_grad()
    (weights * logprobs).sum().backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
