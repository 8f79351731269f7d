"""axolotl's other plugins beside ours, whichever is listed first: Liger, cut cross-entropy, other trainers.

Liger's kernels need a GPU: `test_lora_kernels_gpu.py` trains with them. Here: what they replace, and that
scoring goes through our head whatever they replace.
"""

from collections.abc import Iterator
from types import MethodType

import pytest
import torch
from liger_kernel.transformers.model.gemma2 import lce_forward as gemma2_forward
from liger_kernel.transformers.model.llama import lce_forward as llama_forward
from liger_kernel.transformers.rms_norm import LigerRMSNorm
from liger_kernel.transformers.rope import liger_rotary_pos_emb
from liger_kernel.transformers.swiglu import LigerSwiGLUMLP

from axolotl_aot.errors import AOTConfigError
from axolotl_aot.scoring.forward import attach, completion_logprobs
from axolotl_aot.unread_keys import check_keys, without_unread_keys
from tests.architectures import make
from tests.by_hand import logprob
from tests.conftest import LORA
from tests.helpers import plugins_undone, steps

OURS = "axolotl_aot.AOTPlugin"
LIGER = "axolotl.integrations.liger.LigerPlugin"
CUT_CROSS_ENTROPY = "axolotl.integrations.cut_cross_entropy.CutCrossEntropyPlugin"
LAYERS = {"liger_rope": True, "liger_rms_norm": True, "liger_glu_activation": True, "liger_layer_norm": True}
LOSSES = ("liger_cross_entropy", "liger_fused_linear_cross_entropy", "liger_use_token_scaling")


@pytest.fixture(autouse=True)
def as_before(monkeypatch) -> Iterator[None]:
    with plugins_undone(monkeypatch):
        yield


@pytest.fixture(params=["ours first", "ours last"])
def beside(request, paired_config, quickstart_model):
    """A config with another plugin beside ours, at the size of the quickstart's model."""

    def beside(other: str, **more) -> dict:
        plugins = [OURS, other] if request.param == "ours first" else [other, OURS]
        return {**paired_config, **LORA, "base_model": str(quickstart_model), "plugins": plugins, **more}

    return beside


def test_ligers_layers_are_those_of_the_model(build, beside):
    trainer = build(beside(LIGER, **LAYERS, lora_qkv_kernel=True, lora_o_kernel=True))
    (layer, *_) = trainer.model.get_base_model().model.layers
    assert type(layer.mlp) is LigerSwiGLUMLP
    assert type(layer.input_layernorm) is LigerRMSNorm
    # the fused LoRA kernels rewrite attention, and keep Liger's rotation in it
    assert "apply_qkv" in type(layer.self_attn).forward.__code__.co_names
    assert type(layer.self_attn).forward.__globals__["apply_rotary_pos_emb"] is liger_rotary_pos_emb


def test_without_its_keys_liger_changes_nothing(build, beside):
    trainer = build(beside(LIGER, max_steps=2))
    trainer.train()
    alone = build({**beside(LIGER, max_steps=2), "plugins": [OURS]})
    alone.train()
    assert [step["loss"] for step in steps(trainer)] == [step["loss"] for step in steps(alone)]


@pytest.mark.parametrize("key", LOSSES)
def test_ligers_losses_are_refused_by_name(load, beside, key):
    with pytest.raises(AOTConfigError, match=f"`{key}: True` has no effect .*computed in chunks.*remove it"):
        load(beside(LIGER, **{key: True}, base_model="/nowhere"))


def test_cut_cross_entropy_is_refused_by_name(load, beside):
    message = f"`plugins: {CUT_CROSS_ENTROPY}` has no effect .*remove it, or set cut_cross_entropy to false"
    for more in ({}, {"cut_cross_entropy": True}):
        with pytest.raises(AOTConfigError, match=message):
            load(beside(CUT_CROSS_ENTROPY, **more, base_model="/nowhere"))


def test_cut_cross_entropy_that_is_off_changes_nothing(build, beside):
    trainer = build(beside(CUT_CROSS_ENTROPY, cut_cross_entropy=False, max_steps=1))
    trainer.train()
    assert len(steps(trainer)) == 1


def test_a_report_of_a_run_with_cut_cross_entropy_does_without(load, paired_config):
    from axolotl_aot.config import AOTInput

    load({**paired_config, "plugins": [CUT_CROSS_ENTROPY, OURS], "cut_cross_entropy": False})
    raw = {"plugins": [CUT_CROSS_ENTROPY], "base_model": "x", "cut_cross_entropy": None}
    cfg = without_unread_keys(raw, AOTInput)
    check_keys(cfg, "aot", AOTInput)
    assert cfg["cut_cross_entropy"] is False


def test_a_plugin_with_its_own_trainer_is_refused_by_name(build, beside):
    other = "axolotl.integrations.kd.KDPlugin"
    with pytest.raises(AOTConfigError, match=f"`plugins: {other}` brings its own trainer, AxolotlKDTrainer"):
        build(beside(other, kd_trainer=True))


@pytest.mark.parametrize(("name", "forward"), [("llama", llama_forward), ("gemma2", gemma2_forward)])
def test_scoring_through_a_replaced_forward_pass(name, forward):
    """Liger's fused loss replaces the causal LM's forward pass; asked for no loss, it runs the head."""
    model = make(name)
    prompt, completion = [5, 6, 7], [8, 9, 10, 11]
    expected = logprob(model, prompt, completion)
    expected.backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    model.forward = MethodType(forward, model)
    attach(model.train())
    ids = torch.tensor([prompt + completion])
    mask = torch.tensor([[0, 0, 0, 1, 1, 1, 1]])
    scores = completion_logprobs(model, ids, torch.ones_like(ids), mask)
    scores.logprobs.sum().backward()
    assert scores.logprobs.item() == pytest.approx(expected.item(), rel=1e-5)
    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter.grad, gradients[name], rtol=1e-3, atol=1e-4), name
