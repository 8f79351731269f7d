"""What a layout tells flash attention, against what transformers finds in the positions by itself."""

import pytest
import torch
from transformers.modeling_flash_attention_utils import prepare_fa_kwargs_from_position_ids

from axolotl_aot.scoring.layouts import packed, packed_with_lengths


@pytest.mark.parametrize("lengths", [[5], [3, 9, 1], [1, 1], [4, 7, 7, 2, 6]])
def test_lengths_are_those_of_the_row(lengths):
    width = max(lengths) + 2
    mask = (torch.arange(width) < torch.tensor(lengths)[:, None]).long()
    ids = torch.arange(len(lengths) * width).view(-1, width)
    batch = (ids, mask, mask * (torch.arange(width) > 0))
    found, plain = packed_with_lengths(*batch), packed(*batch)
    for name, value in plain.inputs.items():
        assert torch.equal(found.inputs[name], value)
    assert torch.equal(found.positions, plain.positions) and found.lengths == plain.lengths
    ends, longest = prepare_fa_kwargs_from_position_ids(plain.inputs["position_ids"])
    for side, end, length in zip("qk", ends, longest, strict=True):
        given = found.inputs[f"cu_seq_lens_{side}"]
        assert given.dtype == end.dtype == torch.int32 and torch.equal(given, end)
        assert found.inputs[f"max_length_{side}"] == int(length)
        assert type(found.inputs[f"max_length_{side}"]) is int  # flash attention 4 takes no tensor
