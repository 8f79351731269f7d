"""The preference data of a task: which of two answers is chosen is drawn from the Bradley-Terry model.

So a share of the preferences is wrong, more so between answers of like quality. Everything is drawn from
seeds. Imports NumPy and `benchmarks.alignment.tasks`.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from axolotl_aot.quickstart.task import Problem
from benchmarks.alignment.tasks import TASKS, Task
from benchmarks.alignment.tasks.task import SEED

TEMPERATURE = 0.1  # of the preferences, in units of the reward


@dataclass(frozen=True)
class Data:
    """What a run trains on.

    count: pairs, or answers with a label. positives: their share, of answers with a label; None for the
    answers of `count` pairs, taken apart. flipped: the share of the pairs that are turned round. task: its
    name.
    """

    count: int
    positives: float | None = None
    flipped: float = 0.0
    task: str = "sorting"

    def __post_init__(self) -> None:
        if self.positives is not None and self.flipped:
            raise ValueError("flipped labels would change the share of positives: give one of the two")


def prefers(first: float, second: float, rng: np.random.Generator) -> bool:
    """Bradley-Terry on what two answers are judged at."""
    return bool(rng.random() < 1 / (1 + np.exp((second - first) / TEMPERATURE)))


def draw_pairs(
    task: Task, problems: list[Problem], flipped: float, rng: np.random.Generator
) -> list[dict[str, str]]:
    rows = []
    for problem in problems:
        first, second = task.draw_answer(problem, rng), task.draw_answer(problem, rng)
        while second == first:
            second = task.draw_answer(problem, rng)
        judged = (task.judged(problem, answer) for answer in (first, second))
        if prefers(*judged, rng) == (rng.random() < flipped):
            first, second = second, first
        chosen, rejected = (f" {' '.join(answer)}" for answer in (first, second))
        rows.append({"prompt": task.prompt_of(problem), "chosen": chosen, "rejected": rejected})
    return rows


def draw_labels(task: Task, problems: Iterable[Problem], data: Data, rng: np.random.Generator) -> list[dict]:
    """Answers with a label, one a problem; an answer is good by comparison with another, unseen one."""
    wanted = {True: max(2, round(data.count * data.positives)), False: 0}
    wanted[False] = data.count - wanted[True]
    rows = []
    for problem in problems:
        answer, other = task.draw_answer(problem, rng), task.draw_answer(problem, rng)
        label = prefers(task.judged(problem, answer), task.judged(problem, other), rng)
        if wanted[label]:
            wanted[label] -= 1
            completion = f" {' '.join(answer)}"
            rows.append({"prompt": task.prompt_of(problem), "completion": completion, "label": label})
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


def draw_rows(data: Data, paired: bool, seed: int) -> list[dict]:
    """A training set; the same seed draws the same pairs for every method."""
    task = TASKS[data.task]
    rng = np.random.default_rng([SEED, seed])
    problems = task.split_problems()["train"]
    rng.shuffle(problems)
    if data.positives is not None:
        return draw_labels(task, problems, data, rng)
    rows = draw_pairs(task, problems[: data.count], data.flipped, rng)
    return rows if paired else take_apart(rows)


def write_data(path: Path, data: Data, paired: bool, seed: int) -> Path:
    """A training file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in draw_rows(data, paired, seed)), "utf-8")
    return path


def held_out_pairs(task: Task) -> list[dict[str, str]]:
    """Pairs for the quantile curves; the same for every run."""
    return draw_pairs(task, task.split_problems()["pairs"], 0.0, np.random.default_rng([SEED, 1]))
