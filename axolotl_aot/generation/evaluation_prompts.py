"""A few prompts of an evaluation set, and one model's greedy answers to them, in bounded time and memory."""

from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from axolotl_aot.generation.decoding import Decoding, batches_by_length, end_tokens, generate

MOST_TOKENS = 512  # of an answer
TIMES_LONGEST = 2  # an answer may be so many times as long as the longest that was seen
ROWS_SEEN = 512  # of the evaluation set, for how long its answers are, and how they end
TOKENS_AT_ONCE = 16_384  # of a batch, prompts and answers, which bounds the cache of keys and values
ANSWERS_AT_ONCE = 16


class EvaluationPrompts(NamedTuple):
    """Prompts as token ids, and how answers to them are decoded.

    max_new_tokens: of an answer, its end token included. ends: ids that end an answer. pad: the id that
    fills shorter prompts.
    """

    prompts: list[list[int]]
    max_new_tokens: int
    ends: list[int]
    pad: int


def evaluation_prompts(
    dataset: Dataset,
    columns: Sequence[str],
    count: int,
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
) -> EvaluationPrompts:
    """`count` different prompts, or as many as there are, spread evenly over the rows of the set.

    columns: of the tokenized data, that hold completions. Answers may be twice as long as the longest of
    these, so that growth shows, and `MOST_TOKENS` at most.
    """
    prompts = spread_prompts(dataset, count)
    seen = dataset.select(range(0, len(dataset), max(1, len(dataset) // ROWS_SEEN))).select_columns(
        list(columns)
    )
    completions = [completion for column in columns for completion in seen[column]]
    ends = sorted({*end_tokens(model, tokenizer), *_ends_in_data(completions, tokenizer)})
    longest = max(map(len, completions))
    pad = next(i for i in (tokenizer.pad_token_id, *ends, 0) if i is not None)
    return EvaluationPrompts(prompts, min(MOST_TOKENS, TIMES_LONGEST * longest), ends, pad)


def spread_prompts(dataset: Dataset, count: int) -> list[list[int]]:
    """Different prompts of rows that lie evenly over the set, in its order.

    Several rows may have one prompt; a row whose prompt is taken already makes way for the next one.
    """
    rows = len(dataset)
    taken: dict[int, tuple[int, ...]] = {}
    looked_at: set[int] = set()
    for turn in range(min(count, rows)):
        begin = (2 * turn + 1) * rows // (2 * min(count, rows))
        for row in chain(range(begin, rows), range(begin)):
            if row in looked_at:
                continue
            looked_at.add(row)
            prompt = tuple(dataset[row]["prompt_ids"])
            if prompt not in taken.values():
                taken[row] = prompt
                break
    return [list(taken[row]) for row in sorted(taken)]


def _ends_in_data(completions: list[list[int]], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The added token that most completions end with, but for white space, as chat templates have it.

    A model that is taught to end with it need never write the tokenizer's end token.
    """
    added = tokenizer.added_tokens_decoder
    last = [_last_token(completion, tokenizer) for completion in completions]
    return [token for token in set(last) if token in added and 2 * last.count(token) > len(last)]


def _last_token(completion: list[int], tokenizer: PreTrainedTokenizerBase) -> int | None:
    tail = completion[-2:]
    while tail and not tokenizer.decode(tail[-1:]).strip():
        tail = tail[:-1]
    return tail[-1] if tail else None


def greedy_answers(model: PreTrainedModel | PeftModel, asked: EvaluationPrompts) -> list[list[int]]:
    """One answer to each prompt, in their order, as token ids. The random state is as it was before."""
    longest = max(map(len, asked.prompts)) + asked.max_new_tokens
    size = max(1, min(ANSWERS_AT_ONCE, TOKENS_AT_ONCE // longest))
    answers: dict[int, list[int]] = {}
    for batch in batches_by_length(asked.prompts, size):
        prompts = [asked.prompts[i] for i in batch]
        found = generate(model, prompts, Decoding(asked.max_new_tokens), ends=asked.ends, pad=asked.pad)
        answers.update(zip(batch, found, strict=True))
    return [answers[i] for i in range(len(asked.prompts))]
