"""Orders of an epoch: each sample once, labels spread, nothing but seed and epoch behind it."""

import numpy as np
import pytest
import torch
from accelerate.data_loader import SeedableRandomSampler

from axolotl_aot.training.sampling import ShuffledSampler, StratifiedSampler, positives_per_batch


def stratified(labels, batch_size: int, seed: int = 0, epoch: int = 0) -> list[int]:
    return list(StratifiedSampler(labels, batch_size, seed, lambda: epoch))


def positives_by_batch(order: list[int], labels, batch_size: int) -> list[int]:
    return [sum(labels[i] for i in order[k : k + batch_size]) for k in range(0, len(order), batch_size)]


@pytest.mark.parametrize("epoch", [0, 3])
def test_a_shuffled_order_is_accelerates(epoch):
    theirs = SeedableRandomSampler(range(50), data_seed=7)
    theirs.set_epoch(epoch)
    assert list(ShuffledSampler(50, 7, lambda: epoch)) == list(theirs)


SHAPES = [  # positives, negatives, batch size
    (36, 48, 16),
    (5, 90, 16),
    (90, 5, 16),
    (6, 90, 16),
    (1, 40, 4),
    (7, 10, 16),
    (3, 3, 16),
    (17, 16, 16),
    (16, 17, 16),
    (2, 31, 16),
    (31, 2, 16),
    (20, 20, 2),
    (13, 200, 7),
]


@pytest.mark.parametrize(("positives", "negatives", "batch_size"), SHAPES)
@pytest.mark.parametrize("seed", range(5))
def test_a_stratified_order(positives, negatives, batch_size, seed):
    labels = [True] * positives + [False] * negatives
    order = stratified(labels, batch_size, seed)
    assert sorted(order) == list(range(len(labels)))  # each sample once

    counts = positives_by_batch(order, labels, batch_size)
    full = len(labels) // batch_size
    sizes = [min(batch_size, len(labels) - k) for k in range(0, len(labels), batch_size)]
    both = [0 < count < size for count, size in zip(counts, sizes, strict=True)]
    possible = min(positives, negatives, sum(size > 1 for size in sizes))
    assert sum(both) == possible  # as many batches have both labels as the numbers allow
    if full:
        share = positives / len(labels) * batch_size
        # one for rounding, and one more may have gone to or come from a last, smaller batch
        assert all(share - 2 < count < share + 2 for count in counts[:full])


@pytest.mark.parametrize(("positives", "negatives", "batch_size"), SHAPES)
def test_quotas_for_every_offset(positives, negatives, batch_size):
    total = positives + negatives
    ends = np.append(np.arange(batch_size, total, batch_size), total)
    sizes = np.diff(ends, prepend=0)
    for offset in range(total):
        quotas = positives_per_batch(positives, ends, offset)
        assert quotas.sum() == positives
        assert (quotas >= 0).all() and (quotas <= sizes).all()


def test_batches_change_with_seed_and_epoch_and_nothing_else():
    labels = [i % 3 == 0 for i in range(100)]
    torch.manual_seed(1), np.random.seed(1)
    first = stratified(labels, 16)
    torch.manual_seed(2), np.random.seed(2)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    assert stratified(labels, 16) == first
    assert list(ShuffledSampler(9, 0, lambda: 0)) == list(ShuffledSampler(9, 0, lambda: 0))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()

    for other in (stratified(labels, 16, seed=1), stratified(labels, 16, epoch=1)):
        assert other != first
        batches = [frozenset(order[:16]) for order in (first, other)]
        assert batches[0] != batches[1]  # not the same samples in another order


def test_labels_are_mixed_within_a_batch():
    labels = [True] * 40 + [False] * 40
    order = stratified(labels, 40)
    halves = [sum(labels[i] for i in order[k : k + 20]) for k in range(0, 80, 20)]
    assert all(2 < count < 18 for count in halves)  # 4 standard deviations
