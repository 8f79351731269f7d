"""A task's base model: a 3-layer Llama that has learnt answers as the task draws them.

Imports NumPy, torch, `axolotl_aot.quickstart` and `benchmarks.alignment.tasks`.
"""

from pathlib import Path

import numpy as np
import torch

from axolotl_aot.quickstart.base_model import PAD, Progress, fit, new_model, token_ids
from axolotl_aot.quickstart.task import EOS
from benchmarks.alignment.tasks import Task
from benchmarks.alignment.tasks.task import SEED

BASE_STEPS = 1200


def write_base_model(task: Task, folder: Path, steps: int = BASE_STEPS, progress: Progress = iter) -> None:
    """The model and its tokenizer."""
    tokenizer = task.make_tokenizer()
    rng = np.random.default_rng(SEED)
    model = new_model(tokenizer)
    problems = task.split_problems()["train"]

    def draw() -> tuple[torch.Tensor, int]:
        batch = [problems[i] for i in rng.integers(len(problems), size=256)]
        answers = [[*task.draw_answer(problem, rng), EOS] for problem in batch]
        longest = max(map(len, answers))
        # shorter ones are filled up; that padding follows the end is quickly learnt, and never asked for
        texts = [" ".join(answer + [PAD] * (longest - len(answer))) for answer in answers]
        prompts = token_ids(tokenizer, [task.prompt_of(problem) for problem in batch])
        return torch.cat([prompts, token_ids(tokenizer, texts, special=False)], dim=1), prompts.shape[1]

    fit(model, draw, steps, progress)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
