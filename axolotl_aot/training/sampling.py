"""The order of an epoch's samples: shuffled, or with the labels spread evenly over the batches.

An order depends on the seed and the epoch alone: not on the number of processes, nor on where a run
was interrupted, nor on the global random state, which is neither read nor advanced.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch.utils.data import Sampler


class ShuffledSampler(Sampler[int]):
    """A new permutation of `size` samples each epoch, the one that accelerate's sampler gives.

    epoch: says which epoch (from 0) is about to begin. It is asked rather than told, because
    accelerate tells a sampler of its epoch through `set_epoch`, and does not reach it when a run of
    several processes resumes in the middle of an epoch: that epoch's order would be the first one's.
    """

    def __init__(self, size: int, seed: int, epoch: Callable[[], int]):
        self.size = size
        self.seed = seed
        self._epoch = epoch

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        return iter(self.order(self._epoch()))

    def order(self, epoch: int) -> list[int]:
        """All samples, each once."""
        generator = torch.Generator().manual_seed(self.seed + epoch)
        return torch.randperm(self.size, generator=generator).tolist()


class StratifiedSampler(ShuffledSampler):
    """A permutation in which every run of `batch_size` samples holds its share of both labels.

    labels: one per sample. batch_size: of what is sorted together, the effective batch as a rule.
    Each sample comes once an epoch, and which samples meet in a batch changes with the epoch. A batch
    has both labels wherever there are enough of each to go round.
    """

    def __init__(self, labels: list[bool], batch_size: int, seed: int, epoch: Callable[[], int]):
        super().__init__(len(labels), seed, epoch)
        self.labels = np.asarray(labels, dtype=bool)
        self.batch_size = batch_size

    def order(self, epoch: int) -> list[int]:
        random = np.random.default_rng([self.seed, epoch])
        positives = random.permutation(np.flatnonzero(self.labels))
        negatives = random.permutation(np.flatnonzero(~self.labels))
        ends = np.append(np.arange(self.batch_size, self.size, self.batch_size), self.size)
        quotas = positives_per_batch(len(positives), ends, int(random.integers(self.size)))
        batches = zip(
            np.split(positives, np.cumsum(quotas)[:-1]),
            np.split(negatives, np.cumsum(np.diff(ends, prepend=0) - quotas)[:-1]),
            strict=True,
        )
        return [i for batch in batches for i in random.permutation(np.concatenate(batch)).tolist()]


def positives_per_batch(positives: int, ends: np.ndarray, offset: int) -> np.ndarray:
    """How many of the positives go to each batch, evenly.

    positives: their number. ends: number of samples up to the end of each batch, shape (batches,); all
    batches but the last are equally large. offset: in [0, samples), which of the batches get one more.

    Returns integers, shape (batches,), that sum to `positives`. Full batches differ by one at most.
    """
    total = ends[-1]
    # floor(x + r) - floor(x) is r, up or down to the next integer: at least 1 where r is
    quotas = np.diff((ends * positives + offset) // total, prepend=0)
    # rounding may leave the last batch, which may be small, with one label though there are enough
    size = total - (ends[-2] if len(ends) > 1 else 0)
    wanted = quotas[-1]
    if size > 1:
        low = int(positives >= len(ends))
        high = size - int(total - positives >= len(ends))
        wanted = min(max(wanted, low), high)
    else:  # one sample cannot have both labels: it should be of the one that can spare it
        wanted = int(2 * positives > total)
    while quotas[-1] != wanted:
        step = 1 if quotas[-1] < wanted else -1
        giver = np.argmax(quotas[:-1]) if step > 0 else np.argmin(quotas[:-1])
        quotas[giver] -= step
        quotas[-1] += step
    return quotas
