"""Lengths, ends and repetition of answers, by hand and by counting every pair of n-grams."""

import random

import pytest

from axolotl_aot.generation.measures import has_ended, measure, repetition


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([], 0),
        ([1, 2, 3], 0),  # no 4-gram
        ([1, 2, 3, 4], 0),
        ([1, 2, 3, 4, 5], 0),
        ([7] * 5, 1 / 2),
        ([7] * 13, 9 / 10),
        ([1, 2] * 4, 3 / 5),  # 1212, 2121, and three of them again
        ([1, 2, 3, 4, 9, 1, 2, 3, 4], 1 / 6),
    ],
)
def test_repetition(tokens, expected):
    assert repetition(tokens) == pytest.approx(expected)


def test_repetition_is_how_many_n_grams_have_been_before():
    rng = random.Random(0)
    for _ in range(200):
        tokens = rng.choices(range(rng.choice([1, 2, 3, 50])), k=rng.randint(4, 30))
        starts = range(len(tokens) - 3)
        repeated = sum(any(tokens[i : i + 4] == tokens[j : j + 4] for j in range(i)) for i in starts)
        assert repetition(tokens) == pytest.approx(repeated / len(starts))


def test_measures_of_several_answers():
    answers = [[7] * 13, [1, 2, 9], [], [1, 2, 1, 2, 1, 2, 8]]
    found = measure(answers, ends=[8, 9])
    assert found.length == pytest.approx((13 + 3 + 0 + 7) / 4)
    assert found.ended == 0.5
    assert found.repetition == pytest.approx((9 / 10 + 1 / 4) / 4)  # of 1212, 2121, 1212, 2128 one
    assert found.repeating == 0.25
    assert not has_ended([], [0]) and not has_ended([9, 1], [9]) and has_ended([1, 9], [9])
