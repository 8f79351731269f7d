"""Micro-batches: put together from rows of data, joined, and cut anew by length.

A batch holds `SEQUENCES`, each of shape (sequences, length), filled up with 0 on the right; and whatever
else, of shape (samples, ...). A sample of pairs has two sequences: all chosen ones come first, then all
rejected ones.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from axolotl_aot.scoring.sizes import Sizes, sequence_sizes, to_host

SEQUENCES = ("input_ids", "attention_mask", "completion_mask")
WEIGHT = "weight"  # the samples' masses in their distributions
LABEL = "label"  # whether an answer is a chosen one; pairs have no such column
EXTRAS = (LABEL, WEIGHT)  # columns of the data that go with the samples, where there are any
REFERENCE_LOGPROBS = "reference"  # log-probabilities under the reference, (samples, sequences per sample)

Batch = dict[str, Tensor]
Lookup = Callable[[list[int], list[int]], float]  # a prompt's and a completion's tokens to nats


class Collator:
    """Rows of data to a batch.

    completions: the columns that hold a sample's completions. reference: gives the log-probability of a
    completion under the reference, where that was computed before.
    """

    def __init__(self, completions: Sequence[str], reference: Lookup | None = None):
        self.completions = completions
        self.reference = reference

    def __call__(self, rows: list[Mapping[str, Any]]) -> Batch:
        pairs = [(row["prompt_ids"], row[column]) for column in self.completions for row in rows]
        batch = {
            "input_ids": _filled([[*p, *c] for p, c in pairs]),
            "attention_mask": _filled([[1] * (len(p) + len(c)) for p, c in pairs]),
            "completion_mask": _filled([[0] * len(p) + [1] * len(c) for p, c in pairs]),
        }
        for name in EXTRAS:
            if name in rows[0]:
                batch[name] = torch.tensor([row[name] for row in rows])
        if self.reference is not None:
            logprobs = torch.tensor([self.reference(p, c) for p, c in pairs])
            batch[REFERENCE_LOGPROBS] = logprobs.view(len(self.completions), len(rows)).T
        return batch


def _filled(sequences: list[list[int]]) -> Tensor:
    return pad_sequence([torch.tensor(s) for s in sequences], batch_first=True)


def sizes(batch: Batch, sequences_per_sample: int) -> Sizes:
    """Of each sample's sequences."""
    each = sequence_sizes(to_host(*(batch[name] for name in SEQUENCES)))
    samples = len(each) // sequences_per_sample
    return [each[i::samples] for i in range(samples)]


def join(batches: list[Batch], sequences_per_sample: int) -> Batch:
    """One batch of all samples, in order."""
    length = max(batch["input_ids"].shape[1] for batch in batches)

    def lengthened(value: Tensor) -> Tensor:
        return pad(value, (0, length - value.shape[1])).view(sequences_per_sample, -1, length)

    joined = {}
    for name in batches[0]:
        parts = [batch[name] for batch in batches]
        if name in SEQUENCES:
            joined[name] = torch.cat([lengthened(part) for part in parts], dim=1).flatten(0, 1)
        else:
            joined[name] = torch.cat(parts)
    return joined


def select(batch: Batch, samples: list[int], sequences_per_sample: int) -> Batch:
    """A batch of some of the samples, in this order, no longer than the longest of them."""
    index = torch.tensor(samples, device=batch["input_ids"].device)
    selected = {
        name: value.view(sequences_per_sample, -1, value.shape[1])[:, index].flatten(0, 1)
        if name in SEQUENCES
        else value[index]
        for name, value in batch.items()
    }
    length = int(selected["attention_mask"].sum(dim=1).max())
    return {name: value[:, :length] if name in SEQUENCES else value for name, value in selected.items()}


def to_sample_order(values: Tensor, sequences_per_sample: int) -> Tensor:
    """Values of a batch's sequences (all first ones, then all second ones), now sample by sample."""
    return values.view(sequences_per_sample, -1).T.flatten()


def to_batch_order(values: Tensor, sequences_per_sample: int) -> Tensor:
    """The inverse of `to_sample_order`."""
    return values.view(-1, sequences_per_sample).T.flatten()


def sequence_numbers(samples: list[int], sequences_per_sample: int) -> list[list[int]]:
    """The numbers of the sequences in a joined batch that belong to each of its parts.

    samples: how many each part has.
    """
    total = sum(samples)
    starts = [sum(samples[:i]) for i in range(len(samples))]
    return [
        [
            position * total + i
            for position in range(sequences_per_sample)
            for i in range(start, start + count)
        ]
        for start, count in zip(starts, samples, strict=True)
    ]


# --- How to cut ------------------------------------------------------------------------------


def cut(sample_sizes: Sizes, tokens: Callable[[Sizes], int], limit: int) -> list[list[int]]:
    """The samples in as few micro-batches as it takes with at most `limit` tokens each, the longest first.

    A sample that alone exceeds the limit makes a micro-batch of its own. Returns the samples' numbers.
    """
    return _cut_in_order(_order(sample_sizes, tokens), sample_sizes, tokens, limit)


def _order(sample_sizes: Sizes, tokens: Callable[[Sizes], int]) -> list[int]:
    """The longest samples first; those of one prompt one after the other if they share it in the layout,
    that is, if they take fewer tokens together than apart.
    """
    alone = [tokens([sample]) for sample in sample_sizes]
    of_prompt: dict[int, list[int]] = {}
    for i, sample in enumerate(sample_sizes):
        of_prompt.setdefault(sample[0].prompt_number, []).append(i)
    rank: dict[int, tuple[int, ...]] = {i: (-size,) for i, size in enumerate(alone)}
    for samples in of_prompt.values():
        if tokens([sample_sizes[i] for i in samples]) < sum(alone[i] for i in samples):
            first = max(alone[i] for i in samples)
            rank.update({i: (-first, samples[0], -alone[i]) for i in samples})
    return sorted(rank, key=lambda i: rank[i])


def _cut_in_order(
    order: list[int], sample_sizes: Sizes, tokens: Callable[[Sizes], int], limit: int
) -> list[list[int]]:
    groups: list[list[int]] = []
    for sample in order:
        if groups and tokens([sample_sizes[i] for i in (*groups[-1], sample)]) <= limit:
            groups[-1].append(sample)
        else:
            groups.append([sample])
    return groups


def cut_evenly(
    sample_sizes: Sizes, tokens: Callable[[Sizes], int], count: int, limit: int | None = None
) -> list[list[int]]:
    """The samples in exactly `count` micro-batches, the largest of which is as small as can be.

    count: at most the number of samples. limit: tokens of a micro-batch, kept to where `cut` needs no more
    than `count` micro-batches for it. Returns the samples' numbers, the longest samples first.
    """
    order = _order(sample_sizes, tokens)

    def within(most: int) -> list[list[int]]:
        return _cut_in_order(order, sample_sizes, tokens, most)

    low, high = 0, tokens(sample_sizes)
    if limit is not None and len(within(limit)) <= count:
        high = min(limit, high)
    while low < high:
        middle = (low + high) // 2
        if len(within(middle)) <= count:
            high = middle
        else:
            low = middle + 1
    groups = within(high)
    if len(groups) > count:  # in rows of one length some samples may take more tokens than all
        groups[count - 1 :] = [[sample for group in groups[count - 1 :] for sample in group]]
    while len(groups) < count:
        cost = [tokens([sample_sizes[i] for i in group]) if len(group) > 1 else 0 for group in groups]
        largest = cost.index(max(cost))
        group = groups[largest]
        groups[largest : largest + 1] = [group[: len(group) // 2], group[len(group) // 2 :]]
    return groups
