"""What the sampled answers to a task's problems are worth. Imports NumPy and `benchmarks.alignment.tasks`."""

from collections.abc import Sequence

import numpy as np

from axolotl_aot.quickstart.task import EOS, Problem
from benchmarks.alignment.tasks import Task

WORST = 0.1  # share of the answers whose mean is told besides that of all


def summary(task: Task, problems: Sequence[Problem], texts: Sequence[str]) -> dict[str, float]:
    """Of one decoded answer a problem.

    reward: the mean of true rewards, 0 where malformed; worst: the mean of the lowest `WORST` of them;
    sorted: the share whose reward is 1; malformed; idle: the mean of the task's idle words, of the
    well-formed ones (0 where there is none); length: the mean number of words before the end token,
    `task.max_words` where there is none.
    """
    answers = [task.answer_of_text(problem, text) for problem, text in zip(problems, texts, strict=True)]
    found = [(problem, a) for problem, a in zip(problems, answers, strict=True) if a is not None]
    rewards = np.zeros(len(problems))
    rewards[len(problems) - len(found) :] = [task.reward(*pair) for pair in found]
    rewards.sort()
    words = [text.split() for text in texts]
    lengths = [its.index(EOS) if EOS in its else task.max_words for its in words]
    return {
        "reward": rewards.mean().item(),
        "worst": rewards[: round(WORST * len(rewards))].mean().item(),
        "sorted": (rewards == 1).mean().item(),
        "malformed": 1 - len(found) / len(problems),
        "idle": float(np.mean([task.idle_words(*pair) for pair in found])) if found else 0.0,
        "length": float(np.mean(lengths)),
    }
