"""Attention is known by what transformers registered, under whatever name."""

import pytest
from axolotl.utils.schemas.enums import ATTN_IMPLS_SUPPORTING_PACKING, CANONICAL_ATTN_IMPLS
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.flash_attention import flash_attention_forward
from transformers.masking_utils import flash_attention_mask, sdpa_mask
from transformers.modeling_flash_attention_utils import FLASH_ATTENTION_COMPATIBILITY_MATRIX
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from axolotl_aot.scoring.attention_kinds import BY_POSITIONS, FLASH, attention_kind
from axolotl_aot.scoring.layout_check import PADDING_FREE
from axolotl_aot.scoring.segment_attention import install_gathering


@pytest.fixture
def register(monkeypatch):
    """Registers a function and its mask under a name, as transformers does with a kernel of the Hub."""

    def with_name(name: str, function, mask) -> None:
        monkeypatch.setitem(AttentionInterface._global_mapping, name, function)
        monkeypatch.setitem(AttentionMaskInterface._global_mapping, name, mask)

    return with_name


@pytest.mark.parametrize("version", FLASH_ATTENTION_COMPATIBILITY_MATRIX)
def test_every_flash_attention_of_transformers(version):
    """axolotl exchanges 2 and 3 for 4 where that is installed and the GPU takes it."""
    assert attention_kind(f"flash_attention_{version}") == FLASH


@pytest.mark.parametrize("name", ["kernels-community/vllm-flash-attn3", "kernels-community/new@v1:varlen"])
def test_kernels_of_the_hub(register, name):
    assert attention_kind(name) not in PADDING_FREE
    register(name, flash_attention_forward, flash_attention_mask)
    assert attention_kind(name) == FLASH
    install_gathering(name)
    assert ALL_ATTENTION_FUNCTIONS[name] is not flash_attention_forward
    assert attention_kind(name) == FLASH


def test_attention_of_axolotls_own(register):
    """As it registers xformers and sage: without a mask, and with a function of its own."""
    register("xformers", lambda *_: None, flash_attention_mask)
    assert attention_kind("xformers") == BY_POSITIONS
    register("flash_attention_2", lambda *_: None, flash_attention_mask)
    assert attention_kind("flash_attention_2") == BY_POSITIONS


def test_attention_with_a_mask_is_its_name(register):
    register("kernels-community/sparse", flash_attention_forward, sdpa_mask)
    for name in ("sdpa", "eager", "flex_attention", "kernels-community/sparse"):
        assert attention_kind(name) == name


def test_what_packs_samples_in_axolotl_needs_no_padding_here():
    """Of what is registered without its package; axolotl's list moves with its versions."""
    registered = ATTN_IMPLS_SUPPORTING_PACKING & CANONICAL_ATTN_IMPLS & set(ALL_ATTENTION_FUNCTIONS)
    assert len(registered) >= 3
    for name in registered:
        assert attention_kind(name) in PADDING_FREE, name
