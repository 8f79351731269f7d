"""The task: prompts, right and wrong answers, and the problems that are held out."""

import random
from collections.abc import Iterable
from itertools import combinations, permutations

LETTERS = "abcdefghijkl"
LENGTH = 4
Problem = tuple[str, ...]
KINDS = ("right", "wrong", "malformed")

SEED = 0
HELD_OUT = 512  # problems that neither the base model nor the alignment sees
EOS = "</s>"


def prompt_of(letters: Iterable[str]) -> str:
    return f"sort {' '.join(letters)} :"


def right_answer(letters: Iterable[str]) -> str:
    return " ".join(sorted(letters))


def wrong_answer(letters: Iterable[str]) -> str:
    return " ".join(sorted(letters, reverse=True))


def kind_of(letters: Iterable[str], answer: str) -> str:
    """Which of `KINDS` a decoded answer, with its end token, is."""
    letters = list(letters)
    known = {f"{right_answer(letters)} {EOS}": "right", f"{wrong_answer(letters)} {EOS}": "wrong"}
    return known.get(answer, "malformed")


def split_problems() -> tuple[list[Problem], list[Problem]]:
    """All problems, in random order: those to train on, and those held out."""
    problems = list(permutations(LETTERS, LENGTH))
    random.Random(SEED).shuffle(problems)
    return problems[HELD_OUT:], problems[:HELD_OUT]


def reward(prompt: str, answers: list[str]) -> list[float]:
    """What `axolotl aot-sample --reward` asks for: a score of each answer to a prompt, from 0 to 1.

    0 if an answer has other letters than the problem; otherwise it goes with the number of pairs of letters
    that stand in order.
    """
    letters = sorted(prompt.split()[1:-1])
    scores = []
    for answer in answers:
        words = answer.split()
        pairs = list(combinations(words, 2))
        in_order = sum(first < second for first, second in pairs)
        scores.append((1 + in_order) / (1 + len(pairs)) if sorted(words) == letters else 0.0)
    return scores
