"""What a task is: problems, answers of graded quality, and a reward that a program computes.

Everything is drawn from seeds. Imports NumPy, tokenizers through `axolotl_aot.quickstart`.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from transformers import PreTrainedTokenizerFast

from axolotl_aot.quickstart.base_model import make_tokenizer
from axolotl_aot.quickstart.task import EOS, Problem

SEED = 0
HELD_OUT = 3072  # problems that nothing is trained on: to choose by, to score, and pairs to score
PARTS = ("validation", "test", "pairs")

Answer = Sequence[str]  # words, without the end token


class Task(ABC):
    """Problems, and answers of words.

    name: in the YAML's place, in cells and tables. max_words: of an answer. lengths_differ: whether good
    answers differ in length.
    """

    name: ClassVar[str]
    max_words: ClassVar[int]
    lengths_differ: ClassVar[bool] = False

    @abstractmethod
    def problems(self) -> list[Problem]:
        """All of them, different ones, in random order."""

    @abstractmethod
    def prompt_of(self, problem: Problem) -> str:
        """All prompts have the same number of words."""

    @abstractmethod
    def draw_answer(self, problem: Problem, rng: np.random.Generator) -> tuple[str, ...]:
        """As the base model has learnt them, and as the preference data hold them."""

    @abstractmethod
    def is_well_formed(self, problem: Problem, answer: Answer) -> bool:
        """Whether it is an answer to the problem at all."""

    @abstractmethod
    def reward(self, problem: Problem, answer: Answer) -> float:
        """Of a well-formed answer, from 0 to 1."""

    def judged(self, problem: Problem, answer: Answer) -> float:
        """What preferences follow: the reward, or what a biased judge takes for it."""
        return self.reward(problem, answer)

    def idle_words(self, problem: Problem, answer: Answer) -> int:
        """How many words of a well-formed answer add nothing to it."""
        return 0

    def make_tokenizer(self) -> PreTrainedTokenizerFast:
        """One token a word."""
        return make_tokenizer()

    def split_problems(self) -> dict[str, list[Problem]]:
        """Disjoint problems, in random order: `train`, and `PARTS`."""
        problems = self.problems()
        third = HELD_OUT // len(PARTS)
        parts = {name: problems[i * third : (i + 1) * third] for i, name in enumerate(PARTS)}
        return {**parts, "train": problems[HELD_OUT:]}

    def answer_of_text(self, problem: Problem, text: str) -> tuple[str, ...] | None:
        """The words of a decoded answer before its end token; None where it is malformed."""
        words = text.split()
        if EOS not in words:
            return None
        answer = tuple(words[: words.index(EOS)])
        return answer if self.is_well_formed(problem, answer) else None
