"""How long a batch's sequences are, and which of them have the same prompt."""

from collections.abc import Hashable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class SequenceSize(NamedTuple):
    """Of one sequence: tokens before its completion, tokens from there on, and a number that it has in
    common with sequences of the same prompt.
    """

    prompt: int
    completion: int
    prompt_number: int

    @property
    def total(self) -> int:
        return self.prompt + self.completion


Sizes = Sequence[Sequence[SequenceSize]]  # of each sample's sequences


class HostBatch(NamedTuple):
    """A batch's tokens and their masks in the memory of the host, each of shape (sequences, length)."""

    ids: np.ndarray
    real: np.ndarray
    completion: np.ndarray


def to_host(input_ids: Tensor, attention_mask: Tensor, completion_mask: Tensor) -> HostBatch:
    """The three in one transfer, for which a GPU is waited for once."""
    masks = (mask.to(input_ids.dtype) for mask in (attention_mask, completion_mask))
    ids, real, completion = torch.stack([input_ids, *masks]).cpu().numpy()
    return HostBatch(ids, real.astype(bool), (completion * real).astype(bool))


def sequence_sizes(batch: HostBatch) -> list[SequenceSize]:
    """Of each sequence; its prompt is what stands before its first completion token."""
    totals = batch.real.sum(axis=1).tolist()
    firsts = np.where(batch.completion.any(axis=1), batch.completion.argmax(axis=1), totals).tolist()
    numbers = numbered(ids[:first].tobytes() for ids, first in zip(batch.ids, firsts, strict=True))
    return [
        SequenceSize(first, total - first, number)
        for first, total, number in zip(firsts, totals, numbers, strict=True)
    ]


def numbered(keys: Iterable[Hashable]) -> list[int]:
    """A number for each key, the same for equal ones."""
    numbers: dict[Hashable, int] = {}
    return [numbers.setdefault(key, len(numbers)) for key in keys]
