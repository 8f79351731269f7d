"""Log-probabilities one at a time from plain logits, and what a report must make of them."""

import numpy as np
import pytest
import torch


@torch.no_grad()
def logprobs(model, tokenizer, rows: list[dict], key: str) -> np.ndarray:
    """Of each completion given its prompt, alone, from all its logits."""
    found = []
    for row in rows:
        prompt = tokenizer(row["prompt"]).input_ids
        ids = [*tokenizer(row["prompt"] + row[key]).input_ids, tokenizer.eos_token_id]
        logits = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        found.append(sum(logits[i - 1, ids[i]].item() for i in range(len(prompt), len(ids))))
    return np.array(found)


def logprob(model, prompt: list[int], completion: list[int]) -> torch.Tensor:
    """Of a completion's tokens after a prompt's, alone, from all logits; with a graph."""
    logits = model(torch.tensor([[*prompt, *completion]])).logits[0].log_softmax(-1)
    return sum(logits[len(prompt) + i - 1, token] for i, token in enumerate(completion))


def assert_numbers_of(numbers: dict, scored: dict[str, tuple[np.ndarray, np.ndarray]], name: str) -> None:
    """The means and curves of a run of the report are those of these log-probabilities.

    scored: of chosen and of rejected answers, under the trained model and under the base model.
    """
    levels = np.array(numbers["levels"])
    run = numbers["runs"][name]
    ends = {"chosen": "upper", "rejected": "lower"}
    for side, (policy, reference) in scored.items():
        change = run["changes"][side]
        assert change["log_probability_before"] == pytest.approx(reference.mean(), rel=1e-5)
        assert change["log_probability_after"] == pytest.approx(policy.mean(), rel=1e-5)
        index = np.ceil(levels * len(policy)).astype(int) - 1
        for key, when, values in (
            ("rewards", "after", policy - reference),
            ("log_probabilities", "before", reference),
            ("log_probabilities", "after", policy),
        ):
            curve = run["comparisons"][key][when]["curves"][ends[side]]
            assert np.allclose(curve["quantiles"], np.sort(values)[index], atol=2e-4)


def greedy(model, prompt: list[int], most: int, ends: list[int]) -> list[int]:
    """The likeliest token each time, of a prompt alone and without a cache, up to an end token."""
    answer: list[int] = []
    was_training = model.training
    model.eval()
    while len(answer) < most and not (answer and answer[-1] in ends):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + answer]), use_cache=False).logits
        answer.append(int(logits[0, -1].argmax()))
    model.train(was_training)
    return answer
