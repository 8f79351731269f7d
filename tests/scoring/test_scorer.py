"""The scorer that training, evaluation and reports share, against all logits, one sequence at a time."""

import pytest
import torch

from axolotl_aot.scoring.forward import attach
from axolotl_aot.scoring.gathered_prompts import GatheredPrompts
from axolotl_aot.scoring.layouts import binned, binned_tokens, packed_tokens, padded_tokens
from axolotl_aot.scoring.masked_prompts import MaskedPrompts
from axolotl_aot.scoring.reference_cache import TokenizedAnswer
from axolotl_aot.scoring.scorer import Scorer, score_each, score_sequences
from axolotl_aot.scoring.shared_prompts import Sharing, sharing_under
from tests.architectures import make
from tests.scoring.test_forward import batch, one_by_one, sequences

MASKED = MaskedPrompts(Sharing(span=None, hidden_size=32))
CPU = torch.device("cpu")


@pytest.fixture
def model():
    model = make("llama")
    attach(model)
    return model


def keyed(count: int | None = None) -> dict[bytes, TokenizedAnswer]:
    """Those sequences of which a prompt precedes the completion."""
    found = [TokenizedAnswer(prompt, completion) for prompt, completion in sequences() if prompt]
    return {bytes([i]): sequence for i, sequence in enumerate(found[:count])}


def test_without_gradients_and_with_the_numbers_are_those_of_all_logits(model):
    expected = one_by_one(model)
    scorer = Scorer(lambda: model, CPU)
    model.train()
    silent = scorer.scores_without_gradients(model, batch()).logprobs
    assert model.training and not silent.requires_grad
    graph = scorer.scores(model, batch()).logprobs
    assert graph.requires_grad
    for found in (silent, graph):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


def test_the_strategy_is_found_once_and_for_the_policy(model):
    asked = []
    scorer = Scorer(lambda: asked.append(1) or model, CPU)
    first = scorer.strategy(batch())
    count = len(asked)
    assert count and scorer.strategy(batch()) is first and len(asked) == count
    assert first.layout == GatheredPrompts(sharing_under(model.config), binned, binned_tokens)


@pytest.mark.parametrize("tokens", [padded_tokens, packed_tokens, binned_tokens, MASKED.tokens])
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_each_sequence_is_scored_by_some_process_and_all_take_as_many_turns(tokens, processes):
    todo = keyed()
    turns, found = [], {}
    for process in range(processes):
        batches = list(
            score_each(
                lambda some: -some["attention_mask"].sum(dim=1).float(),
                todo,
                tokens=tokens,
                sequences_at_once=1,
                device=CPU,
                description="",
                process=process,
                processes=processes,
            )
        )
        turns.append(len(batches))
        found |= dict(pair for each in batches for pair in each)
    assert len(set(turns)) == 1
    assert found == {key: -len(s.prompt) - len(s.completion) for key, s in todo.items()}


def test_answers_to_one_prompt_are_scored_together_and_share_it(model):
    prompts = {number: [30 + number] * 20 for number in range(3)}
    todo = {
        bytes([number, answer]): TokenizedAnswer(prompts[number], [40 + answer] * 2)
        for answer in range(4)  # in the data the answers to a prompt lie apart
        for number in prompts
    }
    seen = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    apart = score_sequences(model, todo, sequences_at_once=2, padding_free=False)
    seen.clear()
    found = score_sequences(model, todo, sequences_at_once=2)
    assert found == pytest.approx(apart, rel=1e-5, abs=1e-4)
    assert seen[-3:] == [20 + 4 * 2] * 3  # what comes before is the check of the strategy


def test_a_data_set_under_a_loaded_model():
    model = make("llama")
    expected = dict(zip(sequences_with_prompts(), one_by_one(model).tolist(), strict=True))
    found = score_sequences(model, keyed(), sequences_at_once=2)
    assert len(found) == len(keyed())
    for key, sequence in keyed().items():
        want = expected[tuple(sequence.prompt), tuple(sequence.completion)]
        assert found[key] == pytest.approx(want, rel=1e-5, abs=1e-4)


def sequences_with_prompts() -> list[tuple]:
    return [(tuple(prompt), tuple(completion)) for prompt, completion in sequences()]
