"""Answers decoded from prompts, both as token ids, in batches of prompts of like length."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from peft import PeftModel
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from axolotl_aot.scoring.models import without_adapter


class Decoding(NamedTuple):
    """How answers are drawn.

    max_new_tokens: of an answer, its end token included. temperature: 0 takes the likeliest token each time
    (greedy). top_p: draw from the fewest tokens whose probabilities sum to this.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0


def batches_by_length(prompts: Sequence[Sequence[int]], size: int) -> list[list[int]]:
    """The prompts' positions, in batches of `size`, the longest first; equal lengths keep their order.

    What does not fit into memory then fails at the beginning.
    """
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    return [order[begin : begin + size] for begin in range(0, len(order), size)]


def end_tokens(model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids that end an answer: the tokenizer's end token, and those of the model's generation config."""
    own = model.generation_config.eos_token_id
    ids = own if isinstance(own, list) else [own]
    return sorted({token for token in (tokenizer.eos_token_id, *ids) if token is not None})


@torch.no_grad()
def generate(
    model: PreTrainedModel | PeftModel,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    *,
    ends: Iterable[int],
    pad: int,
    seed: int | None = None,
) -> list[list[int]]:
    """One batch's answers, as token ids; an answer that has ended keeps its end token.

    ends: ids that end an answer. pad: the id that fills shorter prompts, which are not attended to. seed: of
    the draws of this batch, on the CPU and on the model's device; what was drawn elsewhere is not disturbed.
    The model's own generation config is not followed: with its temperature or penalties the answers would not
    be those of the distribution that is trained.
    """
    ends = sorted(ends)
    longest = max(map(len, prompts))
    ids = torch.full((len(prompts), longest), pad)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    device = model.device
    with _answering(model), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        if seed is not None:
            torch.manual_seed(seed)
        found = model.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            generation_config=_config(decoding, ends, pad),
        )
    return [_until_end(answer, ends) for answer in found[:, longest:].tolist()]


@contextlib.contextmanager
def _answering(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """In evaluation mode, and without its own generation config, which fills in what another leaves open."""
    was_training, own = model.training, model.generation_config
    model.eval()
    # by an adapter's task PEFT hands its config on to the model that it wraps, or lets that one's be
    inner = without_adapter(model)
    model.generation_config = inner.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = inner.generation_config = own
        model.train(was_training)


def _config(decoding: Decoding, ends: list[int], pad: int) -> GenerationConfig:
    common = {"max_new_tokens": decoding.max_new_tokens, "eos_token_id": ends, "pad_token_id": pad}
    if not decoding.temperature:
        return GenerationConfig(do_sample=False, **common)
    # without a value transformers would draw from the 50 likeliest tokens
    return GenerationConfig(
        do_sample=True, temperature=decoding.temperature, top_p=decoding.top_p, top_k=0, **common
    )


def _until_end(answer: list[int], ends: list[int]) -> list[int]:
    """Without the padding after the first end token."""
    end = next((place for place, token in enumerate(answer) if token in ends), len(answer))
    return answer[: end + 1]
