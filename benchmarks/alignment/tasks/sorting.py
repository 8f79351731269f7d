"""Five letters to sort: answers have one length.

The reward is the share of the ten pairs of letters that stand in order: 0 to 1, in steps of 0.1. An answer
is well-formed if it is one of the problem's permutations. Half of the answers are careful (few pairs out of
order), half careless (any order). Imports NumPy, `axolotl_aot.quickstart` and `task` beside it.
"""

import random
from itertools import combinations, permutations

import numpy as np

from axolotl_aot.quickstart.task import LETTERS, Problem, prompt_of
from benchmarks.alignment.tasks.task import SEED, Answer, Task

LENGTH = 5
PAIRS = LENGTH * (LENGTH - 1) // 2  # of letters
CAREFUL = 1.2  # log-odds against a pair of letters out of order, in a careful answer (Mallows' model)


class Sorting(Task):
    name = "sorting"
    max_words = LENGTH

    def problems(self) -> list[Problem]:
        problems = list(permutations(LETTERS, LENGTH))
        random.Random(SEED).shuffle(problems)
        return problems

    def prompt_of(self, problem: Problem) -> str:
        return prompt_of(problem)

    def draw_answer(self, problem: Problem, rng: np.random.Generator) -> tuple[str, ...]:
        """By repeated insertion (Mallows' model)."""
        dispersion = CAREFUL if rng.random() < 0.5 else 0.0
        answer: list[str] = []
        for letter in sorted(problem):
            places = np.exp(-dispersion * np.arange(len(answer) + 1))  # from the end: pairs out of order
            place = rng.choice(len(places), p=places / places.sum())
            answer.insert(len(answer) - place, letter)
        return tuple(answer)

    def is_well_formed(self, problem: Problem, answer: Answer) -> bool:
        return sorted(answer) == sorted(problem)

    def reward(self, problem: Problem, answer: Answer) -> float:
        return sum(a < b for a, b in combinations(answer, 2)) / PAIRS
