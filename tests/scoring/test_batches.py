"""Joining, cutting and laying out micro-batches, against brute force."""

import itertools
import random

import pytest
import torch

from axolotl_aot.scoring.batches import (
    Collator,
    cut,
    cut_evenly,
    join,
    select,
    sequence_numbers,
    sizes,
)
from axolotl_aot.scoring.gathered_prompts import GatheredPrompts
from axolotl_aot.scoring.layouts import (
    binned,
    binned_tokens,
    first_fit,
    packed,
    packed_tokens,
    packed_with_lengths,
    padded,
    padded_tokens,
)
from axolotl_aot.scoring.masked_prompts import MaskedPrompts
from axolotl_aot.scoring.shared_prompts import Sharing
from axolotl_aot.scoring.sizes import SequenceSize

SHARING = Sharing(span=None, hidden_size=32)
MASKED = MaskedPrompts(SHARING)
GATHERED = GatheredPrompts(SHARING, binned, binned_tokens)
LAYOUTS = {
    padded: padded_tokens,
    packed: packed_tokens,
    packed_with_lengths: packed_tokens,
    binned: binned_tokens,
    MASKED: MASKED.tokens,
    GATHERED: GATHERED.tokens,
}
NAMES = ["padded", "packed", "packed with lengths", "binned", "masked", "gathered"]


def make_rows(count: int, seed: int, paired: bool) -> list[dict]:
    rng = random.Random(seed)

    def tokens(low: int) -> list[int]:
        return [rng.randrange(3, 50) for _ in range(rng.randint(low, 12))]

    columns = ("chosen_ids", "rejected_ids") if paired else ("completion_ids",)
    return [
        {
            "prompt_ids": tokens(0),
            **{c: tokens(1) for c in columns},
            "weight": rng.random(),
            **({} if paired else {"label": rng.random() > 0.5}),
        }
        for _ in range(count)
    ]


@pytest.fixture(params=[True, False], ids=["paired", "unpaired"])
def collator(request):
    return Collator(["chosen_ids", "rejected_ids"] if request.param else ["completion_ids"])


def drawn(rng: random.Random, count: int, prompts: int) -> list[list[SequenceSize]]:
    """Samples of one or two sequences each, with some of a few prompts."""
    lengths = [rng.randint(0, 20) for _ in range(prompts)]
    each = rng.choice([1, 2])
    numbers = [rng.randrange(prompts) for _ in range(count)]
    return [[SequenceSize(lengths[n], rng.randint(1, 30), n) for _ in range(each)] for n in numbers]


def rows_for(collator, count: int, seed: int = 0) -> list[dict]:
    return make_rows(count, seed, paired=len(collator.completions) == 2)


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_the_collator_pads_on_the_right_and_keeps_the_sides_apart(collator):
    rows = rows_for(collator, 5)
    batch = collator(rows)
    expected = [row["prompt_ids"] + row[column] for column in collator.completions for row in rows]
    for i, sequence in enumerate(expected):
        rest = batch["input_ids"].shape[1] - len(sequence)
        assert batch["input_ids"][i].tolist() == sequence + [0] * rest
        assert batch["attention_mask"][i].tolist() == [1] * len(sequence) + [0] * rest
        prompt = len(rows[i % 5]["prompt_ids"])
        completion = [0] * prompt + [1] * (len(sequence) - prompt) + [0] * rest
        assert batch["completion_mask"][i].tolist() == completion
    assert batch["weight"].tolist() == pytest.approx([row["weight"] for row in rows])
    assert ("label" in batch) is ("label" in rows[0])


def test_references_are_looked_up_by_prompt_and_completion(collator):
    def lookup(prompt: list[int], completion: list[int]) -> float:
        return -100.0 * sum(prompt) - sum(completion)

    rows = rows_for(collator, 4)
    batch = Collator(collator.completions, lookup)(rows)
    expected = [[lookup(row["prompt_ids"], row[c]) for c in collator.completions] for row in rows]
    assert batch["reference"].tolist() == expected


def test_joined_and_selected_is_what_would_have_been_collated(collator):
    sides = len(collator.completions)
    rows = rows_for(collator, 9)
    joined = join([collator(rows[:2]), collator(rows[2:7]), collator(rows[7:])], sides)
    for which in ([0, 1, 2, 3, 4, 5, 6, 7, 8], [8], [4, 2, 7]):
        assert same(select(joined, which, sides), collator([rows[i] for i in which]))
    found = sizes(joined, sides)
    assert [[s[:2] for s in sample] for sample in found] == [
        [(len(row["prompt_ids"]), len(row[c])) for c in collator.completions] for row in rows
    ]
    prompts = [row["prompt_ids"] for row in rows for _ in range(sides)]
    numbers = [size.prompt_number for sample in found for size in sample]
    for i, j in itertools.combinations(range(len(prompts)), 2):
        assert (numbers[i] == numbers[j]) is (prompts[i] == prompts[j])
    whole = collator(rows)["input_ids"]
    for part, which in zip(
        ([0, 1], [2, 3, 4, 5, 6], [7, 8]), sequence_numbers([2, 5, 2], sides), strict=True
    ):
        expected = collator([rows[i] for i in part])["input_ids"]
        assert torch.equal(whole[which][:, : expected.shape[1]], expected)


@pytest.mark.parametrize("layout", LAYOUTS, ids=NAMES)
def test_a_layout_takes_as_many_tokens_as_is_said(collator, layout):
    sides = len(collator.completions)
    for seed in range(5):
        batch = collator(rows_for(collator, 6, seed))
        masks = (batch["input_ids"], batch["attention_mask"], batch["completion_mask"])
        assert layout(*masks).inputs["input_ids"].numel() == LAYOUTS[layout](sizes(batch, sides))


def test_first_fit_overlaps_nothing_and_wastes_no_row():
    rng = random.Random(0)
    for _ in range(50):
        lengths = [rng.randint(1, 20) for _ in range(rng.randint(1, 15))]
        places = first_fit(lengths, width=20)
        taken = [(row, start + i) for (row, start), n in zip(places, lengths, strict=True) for i in range(n)]
        assert len(set(taken)) == sum(lengths) and max(column for _, column in taken) < 20
        rows = 1 + max(row for row, _ in places)
        used = [sum(n for (r, _), n in zip(places, lengths, strict=True) if r == row) for row in range(rows)]
        assert all(a + b > 20 for a, b in itertools.combinations(used, 2))


def by_brute_force(samples, tokens, count: int) -> int:
    """The least that the largest micro-batch can have, of all ways to cut the samples in order of length."""
    order = sorted(samples, key=lambda sample: -tokens([sample]))
    best = None
    for ends in itertools.combinations_with_replacement(range(len(order) + 1), count - 1):
        bounds = [0, *ends, len(order)]
        groups = [order[a:b] for a, b in itertools.pairwise(bounds) if a < b]
        largest = max(tokens(group) for group in groups)
        best = largest if best is None else min(best, largest)
    return best


@pytest.mark.parametrize("tokens", [padded_tokens, packed_tokens])
def test_an_even_cut_is_the_best_one(tokens):
    rng = random.Random(0)
    for _ in range(40):
        samples = drawn(rng, rng.randint(3, 8), prompts=6)
        for count in range(1, min(4, len(samples)) + 1):
            groups = cut_evenly(samples, tokens, count)
            assert len(groups) == count
            assert sorted(i for group in groups for i in group) == list(range(len(samples)))
            assert max(tokens([samples[i] for i in g]) for g in groups) == by_brute_force(
                samples, tokens, count
            )


@pytest.mark.parametrize("tokens", LAYOUTS.values(), ids=NAMES)
def test_a_cut_keeps_to_its_limit_wherever_it_can(tokens):
    rng = random.Random(1)
    for _ in range(40):
        samples = drawn(rng, rng.randint(1, 12), prompts=4)
        limit = rng.randint(10, 150)
        groups = cut(samples, tokens, limit)
        assert sorted(i for group in groups for i in group) == list(range(len(samples)))
        for group in groups:
            assert len(group) == 1 or tokens([samples[i] for i in group]) <= limit
        for count in range(len(groups), len(samples) + 1):
            even = cut_evenly(samples, tokens, count, limit)
            assert len(even) == count
            assert max(tokens([samples[i] for i in g]) for g in even) <= max(
                limit, max(tokens([s]) for s in samples)
            )


def test_a_cut_keeps_to_its_limit_where_a_larger_one_needs_more_micro_batches():
    """Tokens that some samples take together, by their numbers: more than with another one, or than all."""
    tokens = {"0": 9, "1": 7, "2": 6, "3": 5, "4": 4, "01": 14, "12": 8, "012": 9, "123": 9, "1234": 10}
    samples = [[SequenceSize(0, tokens[str(i)], i)] for i in range(5)]

    def taken(some) -> int:
        return tokens.get("".join(str(size.prompt_number) for sample in some for size in sample), 28)

    assert cut(samples, taken, 10) == [[0], [1, 2, 3, 4]]
    assert len(cut(samples, taken, 14)) == 3
    assert cut_evenly(samples, taken, 2, limit=10) == [[0], [1, 2, 3, 4]]
    assert max(map(taken, ([samples[i] for i in g] for g in cut_evenly(samples, taken, 2)))) > 10


def test_samples_of_one_prompt_come_into_one_micro_batch_where_they_share_it():
    samples = [[SequenceSize(40, completion, prompt)] for completion in (9, 1, 5) for prompt in (0, 1)]
    assert sorted(map(sorted, cut_evenly(samples, MASKED.tokens, 2))) == [[0, 2, 4], [1, 3, 5]]
    assert sorted(map(sorted, cut_evenly(samples, packed_tokens, 2))) != [[0, 2, 4], [1, 3, 5]]
