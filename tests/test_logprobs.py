"""Completion log-probabilities against one sequence at a time, in float64."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from axolotl_aot.logprobs import completion_logprobs

SEQUENCES = [([5, 6, 7], [8, 9, 10, 11]), ([5], [12]), ([30, 31, 32, 33, 34], [35, 36])]


def padded_batch():
    length = max(len(p) + len(c) for p, c in SEQUENCES)
    ids, attention, completion = (torch.zeros(len(SEQUENCES), length, dtype=torch.long) for _ in range(3))
    for row, (p, c) in enumerate(SEQUENCES):
        ids[row, : len(p) + len(c)] = torch.tensor(p + c)
        attention[row, : len(p) + len(c)] = 1
        completion[row, len(p) : len(p) + len(c)] = 1
    return {"input_ids": ids, "attention_mask": attention, "completion_mask": completion}


def one_by_one(model) -> list[float]:
    sums = []
    for prompt, completion in SEQUENCES:
        logits = model(torch.tensor([prompt + completion])).logits[0].double()
        table = torch.log_softmax(logits, dim=-1)
        positions = range(len(prompt) - 1, len(prompt) + len(completion) - 1)
        sums.append(sum(table[i, t].item() for i, t in zip(positions, completion, strict=True)))
    return sums


@pytest.mark.parametrize(
    ("dtype", "out", "tolerance"),
    [
        (torch.float64, torch.float64, 1e-12),
        (torch.float32, torch.float32, 1e-5),
    ],
)
def test_equals_each_sequence_alone(tiny_model, dtype, out, tolerance):
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=dtype)
    values, _ = completion_logprobs(model, **padded_batch())
    assert values.dtype == out
    assert values.tolist() == pytest.approx(one_by_one(model), rel=tolerance)


def test_half_precision_logits_are_summed_in_float32(tiny_model):
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16)
    values, outputs = completion_logprobs(model, **padded_batch())
    assert values.dtype == torch.float32
    batch = padded_batch()
    table = torch.log_softmax(outputs.logits[:, :-1].double(), -1)
    table = table.gather(2, batch["input_ids"][:, 1:, None])[..., 0]
    expected = (table * batch["completion_mask"][:, 1:]).sum(1)
    assert values.tolist() == pytest.approx(expected.tolist(), rel=1e-5)
