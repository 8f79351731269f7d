"""The evaluation set that `val_set_size` splits off: whole prompts, so that no prompt is on both sides."""

import math

import numpy as np
from axolotl.utils.logging import get_logger
from datasets import Dataset

from axolotl_aot.data.mapping import PROMPT
from axolotl_aot.errors import AOTDataError

LOG = get_logger(__name__)


def split_by_prompt(dataset: Dataset, val_set_size: int | float) -> tuple[Dataset, Dataset]:
    """The training and the evaluation set.

    The evaluation set has the last rows, as many as axolotl would take, but the answers of a prompt stay
    together: a prompt that would not fit is left to the training set. Where each row has a prompt of its own
    the split is axolotl's.

    Raises:
        AOTDataError: a size that leaves no row to one of the sides.
    """
    prompts = _numbers(dataset)
    rows = len(prompts)
    wanted = math.ceil(val_set_size * rows) if 0 < val_set_size < 1 else int(val_set_size)
    if not 0 < wanted < rows:
        raise AOTDataError(
            f"`val_set_size: {val_set_size:g}` of {rows} rows leaves none for one of the two sides; set a "
            "share between 0 and 1, or a number of rows that is smaller"
        )
    values, group_of, sizes = np.unique(prompts, return_inverse=True, return_counts=True)
    if len(values) == 1:
        raise AOTDataError(
            f"`val_set_size: {val_set_size:g}`: all {rows} rows answer the same prompt, which cannot be on "
            "both sides; give the evaluation set as test_datasets"
        )
    chosen = _fill(group_of, sizes, wanted)
    is_evaluation = chosen[group_of]
    LOG.info(
        f"val_set_size: {val_set_size:g}: {int(is_evaluation.sum()):,} rows of {int(chosen.sum()):,} prompts "
        f"for evaluation, {int((~is_evaluation).sum()):,} rows of {int((~chosen).sum()):,} prompts for "
        "training"
    )
    return tuple(dataset.select(np.flatnonzero(side)) for side in (~is_evaluation, is_evaluation))


def shared_prompts(train: Dataset, evaluation: Dataset) -> int:
    """How many prompts stand in both data sets."""
    return len(np.intersect1d(_numbers(train), _numbers(evaluation)))


def count_prompts(dataset: Dataset) -> int:
    """How many different prompts a data set has."""
    return len(np.unique(_numbers(dataset)))


def _fill(group_of: np.ndarray, sizes: np.ndarray, wanted: int) -> np.ndarray:
    """Which prompts are for evaluation, shape (prompts,): from the last row on, those that still fit.

    group_of: each row's prompt. sizes: rows of each prompt. wanted: rows of the evaluation set.
    """
    chosen = np.zeros(len(sizes), dtype=bool)
    room = wanted
    _, first = np.unique(group_of[::-1], return_index=True)
    order = np.argsort(first)
    for group in order:
        if sizes[group] <= room:
            chosen[group] = True
            room -= sizes[group]
        if not room:
            break
    if not chosen.any():  # each prompt has more answers than are wanted
        chosen[order[np.argmin(sizes[order])]] = True
    return chosen


def _numbers(dataset: Dataset) -> np.ndarray:
    return dataset.with_format("numpy")[PROMPT][:]
