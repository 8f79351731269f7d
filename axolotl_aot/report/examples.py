"""Texts of single answers for the report: those that stand against dominance most."""

from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from axolotl_aot.report.runs import Answers, Run
from axolotl_aot.samples import LABELLED, PAIRS

COUNT = 5  # of either label
CHARACTERS = 400  # of a text; of prompts their ends are kept


def examples(run: Run, dataset: Dataset, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The chosen answers with the lowest rewards, and the rejected ones with the highest.

    dataset: the tokenized rows that the run's answers come from. Its order is not that of the user's file,
    which axolotl shuffles, so that texts are given and no numbers of rows.
    """
    columns = (PAIRS if run.paired else LABELLED).columns
    sides = {"chosen": (run.chosen, 1), "rejected": (run.rejected, -1)}
    return {
        side: [
            {
                "reward": float(answers.rewards[i]),
                "prompt": _end(tokenizer.decode(dataset[int(answers.rows[i])]["prompt_ids"])),
                "completion": _beginning(tokenizer.decode(dataset[int(answers.rows[i])][column])),
            }
            for i in _extremes(answers, sign)
        ]
        for (side, (answers, sign)), column in zip(sides.items(), (columns[0], columns[-1]), strict=True)
    }


def _extremes(answers: Answers, sign: int) -> np.ndarray:
    return np.argsort(sign * answers.rewards, kind="stable")[:COUNT]


def _end(text: str) -> str:
    return text if len(text) <= CHARACTERS else f"...{text[-CHARACTERS:]}"


def _beginning(text: str) -> str:
    return text if len(text) <= CHARACTERS else f"{text[:CHARACTERS]}..."
