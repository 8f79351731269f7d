"""The task: sort five letters, with answers of graded quality and preferences that are noisy.

An answer's true reward is the share of its pairs of letters that stand in order: 0 to 1, in steps of 0.1; an
answer that is not one of the problem's permutations gets 0. The base model has learnt answers of which half
are careful (few pairs out of order) and half careless (any order), and so are those in the preference data.
Which of two is chosen is drawn from the Bradley-Terry model on their true rewards, so that a share of the
preferences is wrong, more so between answers of like quality.

Everything is drawn from seeds. Imports NumPy, torch and `axolotl_aot.quickstart`.
"""

import json
import random
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations, permutations
from pathlib import Path

import numpy as np
import torch

from axolotl_aot.quickstart import (
    EOS,
    LETTERS,
    Problem,
    Progress,
    fit,
    make_tokenizer,
    new_model,
    prompt_of,
    token_ids,
)

LENGTH = 5
PAIRS = LENGTH * (LENGTH - 1) // 2  # of letters

SEED = 0
HELD_OUT = 3072  # problems that nothing is trained on: to choose by, to score, and pairs to score
CAREFUL = 1.2  # log-odds against a pair of letters out of order, in a careful answer (Mallows' model)
TEMPERATURE = 0.1  # of the preferences, in units of the reward
BASE_STEPS = 1200


@dataclass(frozen=True)
class Data:
    """What a run trains on.

    count: pairs, or answers with a label. positives: their share, of answers with a label; None for the
    answers of `count` pairs, taken apart. flipped: the share of the pairs that are turned round.
    """

    count: int
    positives: float | None = None
    flipped: float = 0.0

    def __post_init__(self) -> None:
        if self.positives is not None and self.flipped:
            raise ValueError("flipped labels would change the share of positives: give one of the two")


# --- Problems and answers ---------------------------------------------------------------------------


def split_problems() -> dict[str, list[Problem]]:
    """Disjoint problems, in random order: `train`, and three parts of `HELD_OUT`."""
    problems = list(permutations(LETTERS, LENGTH))
    random.Random(SEED).shuffle(problems)
    third = HELD_OUT // 3
    parts = {
        name: problems[i * third : (i + 1) * third] for i, name in enumerate(("validation", "test", "pairs"))
    }
    return {**parts, "train": problems[HELD_OUT:]}


def reward(answer: Iterable[str]) -> float:
    """The share of pairs of letters that stand in order."""
    return sum(a < b for a, b in combinations(answer, 2)) / PAIRS


def reward_of_text(problem: Problem, text: str) -> float | None:
    """Of a decoded answer, its end token included; None where it is malformed."""
    *letters, end = text.split() or [""]
    if end != EOS or sorted(letters) != sorted(problem):
        return None
    return reward(letters)


def draw_answer(problem: Problem, rng: np.random.Generator) -> tuple[str, ...]:
    """Careful or careless, each in half of the cases; by repeated insertion (Mallows' model)."""
    dispersion = CAREFUL if rng.random() < 0.5 else 0.0
    answer: list[str] = []
    for letter in sorted(problem):
        places = np.exp(-dispersion * np.arange(len(answer) + 1))  # from the end: pairs out of order
        place = rng.choice(len(places), p=places / places.sum())
        answer.insert(len(answer) - place, letter)
    return tuple(answer)


# --- Preferences ------------------------------------------------------------------------------------


def prefers(first: float, second: float, rng: np.random.Generator) -> bool:
    """Bradley-Terry on true rewards."""
    return bool(rng.random() < 1 / (1 + np.exp((second - first) / TEMPERATURE)))


def draw_pairs(problems: list[Problem], flipped: float, rng: np.random.Generator) -> list[dict[str, str]]:
    rows = []
    for problem in problems:
        first, second = draw_answer(problem, rng), draw_answer(problem, rng)
        while second == first:
            second = draw_answer(problem, rng)
        if prefers(reward(first), reward(second), rng) == (rng.random() < flipped):
            first, second = second, first
        chosen, rejected = (f" {' '.join(answer)}" for answer in (first, second))
        rows.append({"prompt": prompt_of(problem), "chosen": chosen, "rejected": rejected})
    return rows


def draw_labels(problems: Iterable[Problem], data: Data, rng: np.random.Generator) -> list[dict]:
    """Answers with a label, one a problem; an answer is good by comparison with another, unseen one."""
    wanted = {True: max(2, round(data.count * data.positives)), False: 0}
    wanted[False] = data.count - wanted[True]
    rows = []
    for problem in problems:
        answer, other = draw_answer(problem, rng), draw_answer(problem, rng)
        label = prefers(reward(answer), reward(other), rng)
        if wanted[label]:
            wanted[label] -= 1
            completion = f" {' '.join(answer)}"
            rows.append({"prompt": prompt_of(problem), "completion": completion, "label": label})
        if not any(wanted.values()):
            break
    return rows


def take_apart(pairs: list[dict[str, str]]) -> list[dict]:
    """The answers of pairs, each with its label."""
    return [
        {"prompt": pair["prompt"], "completion": pair[side], "label": side == "chosen"}
        for pair in pairs
        for side in ("chosen", "rejected")
    ]


def write_data(path: Path, data: Data, paired: bool, seed: int) -> Path:
    """A training file; the same seed draws the same pairs for every method."""
    rng = np.random.default_rng([SEED, seed])
    problems = split_problems()["train"]
    rng.shuffle(problems)
    if data.positives is not None:
        rows = draw_labels(problems, data, rng)
    else:
        rows = draw_pairs(problems[: data.count], data.flipped, rng)
        rows = rows if paired else take_apart(rows)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def held_out_pairs() -> list[dict[str, str]]:
    """Pairs for the quantile curves; the same for every run."""
    return draw_pairs(split_problems()["pairs"], 0.0, np.random.default_rng([SEED, 1]))


# --- The base model ---------------------------------------------------------------------------------


def write_base_model(folder: Path, steps: int = BASE_STEPS, progress: Progress = iter) -> None:
    """A 3-layer Llama that has learnt answers as `draw_answer` draws them, and its tokenizer."""
    tokenizer = make_tokenizer()
    rng = np.random.default_rng(SEED)
    model = new_model(tokenizer)
    problems = split_problems()["train"]

    def draw() -> tuple[torch.Tensor, int]:
        batch = [problems[i] for i in rng.integers(len(problems), size=256)]
        answers = [f"{' '.join(draw_answer(problem, rng))} {EOS}" for problem in batch]
        prompts = token_ids(tokenizer, [prompt_of(problem) for problem in batch])
        return torch.cat([prompts, token_ids(tokenizer, answers, special=False)], dim=1), prompts.shape[1]

    fit(model, draw, steps, progress)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
