"""Which prompts are answered, where answers end, and that they are those of a plain loop over the model."""

import itertools
import random

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from axolotl_aot.generation import evaluation_prompts as module
from axolotl_aot.generation.evaluation_prompts import evaluation_prompts, greedy_answers, spread_prompts
from axolotl_aot.scoring.models import without_adapter
from tests.by_hand import greedy


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    return AutoTokenizer.from_pretrained(tiny_model)


@pytest.fixture(params=["full", "lora", "lora-task"])
def model(request, tiny_model):
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    model.generation_config.repetition_penalty = 1.9  # that is not the trained distribution
    if request.param == "full":
        return model
    torch.manual_seed(0)
    task = "CAUSAL_LM" if request.param == "lora-task" else None  # PEFT's class, and its `generate`, go by it
    lora = LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False, task_type=task)
    return get_peft_model(model, lora)


def test_different_prompts_lie_evenly_over_the_set():
    rng = random.Random(0)
    for _ in range(300):
        rows, count = rng.randint(1, 40), rng.randint(1, 12)
        numbers = rng.choices(range(rng.choice([1, 3, 100])), k=rows)
        if rng.random() < 0.5:
            numbers.sort()  # a prompt's answers side by side
        found = spread_prompts(Dataset.from_dict({"prompt_ids": [[n, 7] for n in numbers]}), count)
        assert len({tuple(prompt) for prompt in found}) == len(found) == min(count, len(set(numbers)))
        assert all(prompt in [[n, 7] for n in numbers] for prompt in found)
    for rows in (8, 9, 100):
        found = [
            n for n, _ in spread_prompts(Dataset.from_dict({"prompt_ids": [[n, 7] for n in range(rows)]}), 8)
        ]
        gaps = {after - before for before, after in itertools.pairwise(found)}
        assert found == sorted(found) and max(gaps) - min(gaps) <= 1
        assert abs(found[0] - (rows - 1 - found[-1])) <= 1


def dataset(completions: list[list[int]]) -> Dataset:
    prompts = [[1, 5 + i] for i in range(len(completions))]
    return Dataset.from_dict({"prompt_ids": prompts, "completion_ids": completions})


def test_answers_end_where_the_data_end(tiny_model, tokenizer):
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    end, chat_end = tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")
    newline = tokenizer.encode("\n", add_special_tokens=False)
    word = tokenizer.encode(" cat", add_special_tokens=False)
    assert len(newline) == 1
    for tails, ends in (
        ([[end]] * 4, {end}),
        ([[chat_end, *newline]] * 4, {end, chat_end}),
        ([[chat_end, *newline]] * 3 + [word], {end, chat_end}),  # one was cut
        ([[chat_end]] + [word] * 3, {end}),
        ([word] * 4, {end}),
    ):
        found = evaluation_prompts(
            dataset([[9, 9, *tail] for tail in tails]), ["completion_ids"], 2, model, tokenizer
        )
        assert set(found.ends) == ends
        assert found.pad == tokenizer.pad_token_id


def test_answers_may_be_twice_as_long_as_the_data(tiny_model, tokenizer):
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    for lengths, limit in (([3, 9, 4], 18), ([3, 900], 512)):
        data = dataset([[9] * length for length in lengths])
        assert evaluation_prompts(data, ["completion_ids"], 2, model, tokenizer).max_new_tokens == limit


def test_answers_are_those_of_a_plain_loop(model, tokenizer, monkeypatch):
    monkeypatch.setattr(module, "TOKENS_AT_ONCE", 100)  # several batches
    rng = random.Random(1)
    prompts = [[1, *rng.choices(range(5, 290), k=rng.randint(1, 12))] for _ in range(11)]
    data = Dataset.from_dict({"prompt_ids": prompts, "completion_ids": [[5] * 10] * 11})
    asked = evaluation_prompts(data, ["completion_ids"], 11, model, tokenizer)
    expected = [greedy(model, prompt, 20, asked.ends) for prompt in asked.prompts]
    # ends of all kinds: at the limit, and before
    asked = asked._replace(ends=sorted({*asked.ends, expected[0][3], expected[4][0]}))
    expected = [greedy(model, prompt, 20, asked.ends) for prompt in asked.prompts]
    assert len({len(answer) for answer in expected}) > 2

    model.train()
    own = model.generation_config
    state = torch.get_rng_state()
    assert asked.prompts == prompts and greedy_answers(model, asked) == expected
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training and all(part.training for part in model.modules())
    for wrapped in (model, without_adapter(model)):
        assert wrapped.generation_config is own
