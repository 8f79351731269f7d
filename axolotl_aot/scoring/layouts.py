"""Layouts: how a batch's sequences lie in the rows that the model gets, and how many tokens that takes."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from axolotl_aot.scoring.sizes import Sizes


class Layout(NamedTuple):
    """A batch as the model gets it, and where in it, flattened, stands what precedes each target."""

    inputs: dict[str, Any]
    positions: Tensor  # (tokens,)
    targets: Tensor  # (tokens,)
    lengths: list[int]  # completion tokens of each sequence


def padded(input_ids: Tensor, attention_mask: Tensor, completion_mask: Tensor) -> Layout:
    """One row a sequence."""
    counted = completion_mask[:, 1:]  # nothing stands before a first token
    row, position = counted.nonzero(as_tuple=True)
    return Layout(
        {"input_ids": input_ids, "attention_mask": attention_mask},
        positions=row * input_ids.shape[1] + position,
        targets=input_ids[row, position + 1],
        lengths=counted.sum(dim=1).tolist(),
    )


def packed(input_ids: Tensor, attention_mask: Tensor, completion_mask: Tensor) -> Layout:
    """All sequences in one row without padding, told apart by positions that begin again at 0."""
    lengths = _sequence_lengths(attention_mask)
    return _rows(input_ids, attention_mask, completion_mask, lengths, width=sum(lengths))


def packed_with_lengths(input_ids: Tensor, attention_mask: Tensor, completion_mask: Tensor) -> Layout:
    """The same, and flash attention is given the sequences' lengths, under transformers' names.

    Otherwise each layer would find them in the positions again, and flash attention 4 would not take what it
    finds: the longest length as a tensor.
    """
    lengths = _sequence_lengths(attention_mask)
    layout = _rows(input_ids, attention_mask, completion_mask, lengths, width=sum(lengths))
    starts = accumulate(sorted(lengths, reverse=True), initial=0)  # as they lie in the row
    ends = torch.tensor(list(starts), dtype=torch.int32, device=input_ids.device)
    given = {
        "cu_seq_lens_q": ends,
        "cu_seq_lens_k": ends,
        "max_length_q": max(lengths),
        "max_length_k": max(lengths),
    }
    return layout._replace(inputs={**layout.inputs, **given})


def binned(input_ids: Tensor, attention_mask: Tensor, completion_mask: Tensor) -> Layout:
    """Rows as long as the longest sequence, with shorter ones together in a row wherever they fit.

    For attention that looks at all pairs of a row's tokens, which one long row would make expensive.
    """
    lengths = _sequence_lengths(attention_mask)
    return _rows(input_ids, attention_mask, completion_mask, lengths, width=max(lengths))


def _sequence_lengths(attention_mask: Tensor) -> list[int]:
    """Tokens of each sequence; on a GPU Python waits for them."""
    return attention_mask.sum(dim=1).tolist()


def _rows(
    input_ids: Tensor, attention_mask: Tensor, completion_mask: Tensor, lengths: list[int], width: int
) -> Layout:
    """Sequences of these lengths in rows of this width. What is left of a row goes on with its last
    sequence's positions, which come after all that counts.

    There must be no attention mask: with one, transformers does not tell the sequences apart.
    """
    bins = first_fit(lengths, width)
    row = torch.tensor([row for row, _ in bins], device=input_ids.device)
    start = torch.tensor([start for _, start in bins], device=input_ids.device)
    count = 1 + max(number for number, _ in bins)
    real = attention_mask.bool()
    place = (row * width + start)[:, None] + attention_mask.cumsum(dim=1) - 1
    ids = input_ids.new_zeros(count * width).index_put((place[real],), input_ids[real])
    # of each place in a row, where the last sequence up to there has begun
    begun = start.new_zeros(count, width).index_put((row, start), start).cummax(dim=1).values
    counted = completion_mask.bool() & real
    counted[:, 0] = False  # nothing stands before a first token
    return Layout(
        {
            "input_ids": ids.view(count, width),
            "position_ids": torch.arange(width, device=input_ids.device) - begun,
        },
        positions=place[counted] - 1,
        targets=input_ids[counted],
        lengths=counted.sum(dim=1).tolist(),
    )


def first_fit(lengths: Sequence[int], width: int) -> list[tuple[int, int]]:
    """Row and start of each sequence: the longest first, each in the first row that has room for it."""
    taken: list[int] = []
    places = [(0, 0)] * len(lengths)
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        row = next((r for r, used in enumerate(taken) if used + lengths[i] <= width), len(taken))
        if row == len(taken):
            taken.append(0)
        places[i] = (row, taken[row])
        taken[row] += lengths[i]
    return places


# --- What a layout takes ---------------------------------------------------------------------


def padded_tokens(sample_sizes: Sizes) -> int:
    """What a micro-batch of these samples takes, one row a sequence, padding included."""
    lengths = _lengths(sample_sizes)
    return len(lengths) * max(lengths)


def packed_tokens(sample_sizes: Sizes) -> int:
    """What a micro-batch of these samples takes without padding."""
    return sum(_lengths(sample_sizes))


def binned_tokens(sample_sizes: Sizes) -> int:
    """What a micro-batch of these samples takes in rows of the longest sequence's length."""
    lengths = _lengths(sample_sizes)
    width = max(lengths)
    return width * (1 + max(row for row, _ in first_fit(lengths, width)))


def _lengths(sample_sizes: Sizes) -> list[int]:
    return [size.total for sample in sample_sizes for size in sample]
