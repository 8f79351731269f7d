"""Fused LoRA kernels on a CUDA GPU, as a run has them by default, against the same run without them.

The oracle of log-probabilities and gradients is the same model in float32. In bfloat16 kernels may be
`ALLOWED` times as far from it as the same model without them.
"""

import copy
from collections.abc import Iterator

import pytest
import torch
from axolotl.kernels.lora import apply_lora_mlp_swiglu, apply_lora_o, apply_lora_qkv
from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from tests.conftest import LORA
from tests.helpers import column, plugins_undone, steps
from tests.tiny import make_model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="Triton kernels need a CUDA GPU")

ALLOWED = 1.5
KERNELS = ("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel", "lora_embedding_kernel")
OFF = dict.fromkeys(KERNELS, False)
PLAIN_LORA = {key: value for key, value in LORA.items() if key not in KERNELS} | {"lora_r": 16}
QLORA = {**PLAIN_LORA, "adapter": "qlora", "load_in_4bit": True}
KINDS = {"lora": PLAIN_LORA, "qlora": QLORA}
LIGER = {
    "plugins": ["axolotl.integrations.liger.LigerPlugin", "axolotl_aot.AOTPlugin"],
    "liger_rope": True,
    "liger_rms_norm": True,
    "liger_glu_activation": True,
}


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    """A Llama with random weights, wide enough for the kernels' blocks, and the tiny one's tokenizer."""
    folder = tmp_path_factory.mktemp("wide")
    make_model(folder)
    config = LlamaConfig.from_pretrained(
        folder,
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=4,
        num_attention_heads=8,
        head_dim=64,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.data.mul_(1.5)
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def no_tf32() -> Iterator[None]:
    """The oracle multiplies in float32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.fixture(autouse=True)
def as_before(monkeypatch) -> Iterator[None]:
    with plugins_undone(monkeypatch):
        yield


@pytest.fixture
def config(paired_config, model_folder) -> dict:
    more = {"bf16": True, "base_model": str(model_folder), "max_grad_norm": 1e9, "learning_rate": 1e-3}
    return {**paired_config, **more}


def served(model) -> list[str]:
    """The kernels that every layer of a model has."""
    layers = model.get_base_model().model.layers
    found = {
        "lora_mlp_kernel": all(
            getattr(x.mlp.forward, "__func__", 0) is apply_lora_mlp_swiglu for x in layers
        ),
        "lora_qkv_kernel": all(vars(x.self_attn).get("apply_qkv") for x in layers)
        and all(x.self_attn.apply_qkv.__func__ is apply_lora_qkv for x in layers),
        "lora_o_kernel": all(vars(x.self_attn).get("apply_o") for x in layers)
        and all(x.self_attn.apply_o.__func__ is apply_lora_o for x in layers),
    }
    return [key for key, value in found.items() if value]


def shake(model) -> None:
    """An adapter's weights, in a type's own precision, that change the model."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            noise = 0.05 * torch.randn(parameter.shape, generator=generator)
            parameter.data.copy_(noise.to(parameter.device))


def in_float32(trainer, model_folder):
    """The trainer's model with the values of its weights, in float32 and without a kernel."""
    from bitsandbytes.functional import dequantize_4bit

    policy = trainer.accelerator.unwrap_model(trainer.model)
    base = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).cuda()
    exact = get_peft_model(base, copy.deepcopy(policy.peft_config["default"]))
    for (_, mine), (name, other) in zip(_projections(exact), _projections(policy), strict=True):
        weight = other.base_layer.weight
        state = getattr(weight, "quant_state", None)
        value = weight if state is None else dequantize_4bit(weight.data, state)
        assert mine.base_layer.weight.shape == value.shape, name
        mine.base_layer.weight.data = value.float()
    weights = {name: value.float() for name, value in get_peft_model_state_dict(policy).items()}
    set_peft_model_state_dict(exact, weights)
    return exact


def _projections(model) -> list:
    return [(name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer)]


def scores_and_gradients(trainer, model, autocast: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of a batch: log-probabilities of policy and of the base model; one vector of all gradients."""
    from axolotl_aot.scoring.forward import attach, completion_logprobs

    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    sequences = {name: batch[name] for name in ("input_ids", "attention_mask", "completion_mask")}
    attach(model.get_base_model())
    model.zero_grad()
    with torch.autocast("cuda", dtype=torch.bfloat16, enabled=autocast):
        with torch.no_grad(), model.disable_adapter():
            reference = completion_logprobs(model, **sequences).logprobs
        policy = completion_logprobs(model, **sequences).logprobs
    signs = torch.ones_like(policy)
    signs[1::2] = -1
    (signs * policy).sum().backward()
    gradients = [p.grad.float().flatten() for n, p in sorted(model.named_parameters()) if p.grad is not None]
    return policy.detach(), reference, torch.cat(gradients)


def errors(found, exact) -> list[float]:
    """Of log-probabilities, root mean square in nats; of gradients, relative."""
    return [
        *((a - b).pow(2).mean().sqrt().item() for a, b in zip(found[:2], exact[:2], strict=True)),
        ((found[2] - exact[2]).norm() / exact[2].norm()).item(),
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_as_near_to_float32_as_without_kernels(build, config, model_folder, kind, record_property):
    found = {}
    for name, more in (("plain", OFF), ("kernels", {})):
        trainer = build({**config, **KINDS[kind], **more})
        policy = trainer.accelerator.unwrap_model(trainer.model)
        assert served(policy) == ([] if more else ["lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel"])
        policy.train()
        shake(policy)
        found[name] = scores_and_gradients(trainer, policy, autocast=True)
        if name == "plain":
            exact = scores_and_gradients(trainer, in_float32(trainer, model_folder), autocast=False)
    plain, kernels = errors(found["plain"], exact), errors(found["kernels"], exact)
    names = ("policy, nats", "reference, nats", "gradients, relative")
    for name, before, after in zip(names, plain, kernels, strict=True):
        print(f"{kind}: {name}: without kernels {before:.5f}, with them {after:.5f}")
        record_property(name, (before, after))
    for name, before, after in zip(names, plain, kernels, strict=True):
        assert after <= ALLOWED * before, name


def assert_no_rewards(trainer) -> None:
    """In the first step; policy and reference may be scored in batches of other sizes, and so be rounded."""
    rewards = [steps(trainer)[0][f"rewards/{name}"] for name in ("chosen", "rejected")]
    assert rewards == pytest.approx([0, 0], abs=0.02)  # beta is 0.1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("more", [{}, {"gradient_checkpointing": True, "gradient_accumulation_steps": 2}])
def test_a_run_begins_without_rewards_and_learns_the_same(build, config, kind, more):
    logs = []
    for kernels in (OFF, {}):
        trainer = build({**config, **KINDS[kind], **more, **kernels, "max_steps": 3})
        trainer.train()
        logs.append(trainer)
        assert_no_rewards(trainer)
    plain, fused = logs
    assert column(fused, "grad_norm")[0] == pytest.approx(column(plain, "grad_norm")[0], rel=0.1)
    assert column(fused, "logps/chosen") == pytest.approx(column(plain, "logps/chosen"), rel=0.02)
    assert column(fused, "loss") == pytest.approx(column(plain, "loss"), rel=0.05)


def test_a_key_that_is_false_stays_off(build, config):
    trainer = build({**config, **PLAIN_LORA, **OFF, "lora_o_kernel": True})
    assert served(trainer.model) == ["lora_o_kernel"]


def test_dora_has_none_by_default(build, config):
    assert served(build({**config, **PLAIN_LORA, "peft_use_dora": True}).model) == []


@pytest.mark.parametrize("kernels", [{}, OFF], ids=["lora kernels", "none"])
def test_liger(build, config, kernels):
    """Liger's rope, norms and MLP, and the fused LoRA kernels over them."""
    logs = []
    for more in ({}, LIGER):
        trainer = build({**config, **PLAIN_LORA, **kernels, **more, "max_steps": 2})
        logs.append(trainer)
        trainer.train()
    assert "Liger" in type(logs[1].model.get_base_model().model.norm).__name__
    assert len(served(logs[1].model)) == (0 if kernels else 3)
    assert_no_rewards(logs[1])
    for name, tolerance in (("logps/chosen", 0.02), ("loss", 0.05)):
        assert column(logs[1], name) == pytest.approx(column(logs[0], name), rel=tolerance)
