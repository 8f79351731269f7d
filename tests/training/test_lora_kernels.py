"""axolotl's fused LoRA kernels in a run of AOT, against the same run without them.

On a CPU: the kernels of attention, which are plain torch. `test_lora_kernels_gpu.py` has those in Triton.
"""

import json
import shutil
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from axolotl.kernels.lora import apply_lora_embedding, apply_lora_o, apply_lora_qkv, matmul_lora
from axolotl.utils.dict import DictDefault
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from transformers.models.llama.modeling_llama import LlamaAttention

from axolotl_aot.errors import AOTConfigError
from axolotl_aot.training.lora_kernels import _by_default, _other_mlp, _Run, carry_keys
from tests import architectures
from tests.adapters import LINEAR, make_adapter
from tests.by_hand import logprob
from tests.conftest import LORA, QLORA
from tests.helpers import (
    Snapshots,
    column,
    counting_calls,
    scored_as_reference,
    sequences,
    steps,
    unchanged,
)
from tests.marks import needs, slow_except
from tests.tiny import make_pairs, with_test_rows

KERNELS = {"lora_qkv_kernel": True, "lora_o_kernel": True}
KEYS = ("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel", "lora_embedding_kernel")
PLAIN_LORA = {key: value for key, value in LORA.items() if key not in KEYS}
WEIGHTS = "adapter_model.safetensors"


ARCHITECTURES = ("qwen2", "qwen3", "mistral", "gemma2", "gemma3_text", "granite", "mixtral")


@pytest.fixture(autouse=True)
def classes_as_before() -> Iterator[None]:
    with unchanged(LlamaAttention):
        yield


@pytest.fixture
def config(paired_config) -> dict:
    return {**paired_config, **LORA, "learning_rate": 1e-2, "max_grad_norm": 1e9}


def trained(build, config: dict):
    """The trainer after its run, with the gradients of each step."""
    trainer = build(config)
    snapshots = Snapshots()
    trainer.add_callback(snapshots)
    with counting_calls(matmul_lora) as calls:
        trainer.train()
    used = (
        {
            "lora_qkv_kernel": any(a.apply_qkv.__func__ is apply_lora_qkv for a in attentions(trainer)),
            "lora_o_kernel": any(a.apply_o.__func__ is apply_lora_o for a in attentions(trainer)),
        }
        if calls
        else {}
    )
    return trainer, snapshots.gradients, used


def attentions(trainer) -> list:
    return [module for name, module in trainer.model.named_modules() if name.endswith(".self_attn")]


def assert_alike(build, config: dict, more: dict, tolerance: float = 1e-4) -> None:
    """Losses, gradients and their norms are what they are without kernels; the reference, to the bit."""
    plain, expected, used = trained(build, config)
    assert not used
    before = scored_as_reference(plain)
    fused, found, used = trained(build, {**config, **more})
    assert used == {key: bool(more.get(key)) for key in KERNELS}
    for name in ("loss", "grad_norm", "logps/chosen", "logps/rejected"):
        assert column(fused, name) == pytest.approx(column(plain, name), rel=tolerance), name
    assert column(fused, "rewards/margins") == pytest.approx(
        column(plain, "rewards/margins"), rel=tolerance, abs=1e-6
    )
    assert len(expected) == len(found) > 1
    for number, (step, step_before) in enumerate(zip(found, expected, strict=True)):
        assert step.keys() == step_before.keys()
        scale = max(gradient.norm() for gradient in step_before.values())
        for name, gradient in step_before.items():
            error = (step[name] - gradient).norm()
            relative = tolerance * (
                10 if number else 1
            )  # Adam's first step is a sign, also of what is nearly 0
            assert error < relative * gradient.norm() + 1e-6 * scale, name
    assert scored_as_reference(fused).equal(before)


KINDS = {
    "lora": {},
    "checkpointing": {"gradient_checkpointing": True, "gradient_accumulation_steps": 2},
    "reentrant checkpointing": {
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": True},
    },
    "rslora, patterns": {
        "peft_use_rslora": True,
        "lora_rank_pattern": {"q_proj": 2},
        "lora_alpha_pattern": {"v_proj": 3},
    },
    "some layers": {"peft_layers_to_transform": [1]},
    "dropout, which TRL switches off": {"lora_dropout": 0.3},
    "padded": {"aot_padding_free": False},
    "precomputed": {"precompute_ref_log_probs": True},
}


@pytest.mark.parametrize("kind", slow_except(["lora", "checkpointing"], KINDS))
def test_a_run_is_what_it_is_without_kernels(build, config, tmp_path, kind):
    config = {**config, **KINDS[kind], "dataset_prepared_path": str(tmp_path / "prepared"), "max_steps": 3}
    assert_alike(build, config, KERNELS)


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_other_architectures(build, config, tiny_model, tmp_path, name):
    model = architectures.make(name, vocab_size=300, max_position_embeddings=256)
    for path, parameter in model.named_parameters():
        if path.endswith("bias"):
            parameter.data.normal_()
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    model.save_pretrained(folder)
    with unchanged({type(layer.self_attn) for layer in model.model.layers}.pop()):
        assert_alike(build, {**config, "base_model": str(folder), "max_steps": 2}, KERNELS)


@pytest.mark.slow
def test_an_adapter_of_the_embeddings(build, config):
    more = {"lora_target_linear": None, "lora_target_modules": [*LINEAR, "embed_tokens"]}
    assert_alike(build, {**config, **more, "max_steps": 2}, {**KERNELS, "lora_embedding_kernel": True})
    trainer = build({**config, **more, "lora_embedding_kernel": True})
    assert vars(trainer.model.get_input_embeddings())["forward"].__func__ is apply_lora_embedding


@pytest.mark.parametrize("more", [{key: True} for key in KERNELS], ids=KERNELS)
@pytest.mark.slow
def test_one_kernel_alone(build, config, more):
    assert_alike(build, {**config, "max_steps": 2}, more)


def test_unpaired(build, unpaired_config):
    config = {**unpaired_config, **LORA, "learning_rate": 1e-2, "max_grad_norm": 1e9, "max_steps": 2}
    assert_alike(build, {**config, "gradient_accumulation_steps": 2}, KERNELS)


# bitsandbytes quantizes doubly on a GPU by default, and the kernels read that there only
NOT_DOUBLY = {"bnb_config_kwargs": {"bnb_4bit_use_double_quant": False}}


@pytest.mark.slow
def test_4_bits(build, paired_config):
    config = {**paired_config, **QLORA, **NOT_DOUBLY, "max_grad_norm": 1e9, "max_steps": 2}
    # LoRA's matrices and their gradients are in bfloat16 over 4-bit weights
    assert_alike(build, config, KERNELS, tolerance=0.02)


def test_the_reference_is_the_start_of_a_round(build, config, tiny_model, tmp_path):
    start = make_adapter(tmp_path / "start", tiny_model)
    assert_alike(build, {**config, "lora_model_dir": str(start), "max_steps": 2}, KERNELS)


def test_the_reference_is_the_base_model(build, config, tiny_model):
    trainer, _, _ = trained(build, {**config, **KERNELS})
    base = AutoModelForCausalLM.from_pretrained(tiny_model)  # of the class that was rewritten
    with torch.no_grad():
        expected = [logprob(base, *sequence).item() for sequence in sequences(trainer.train_dataset)]
    assert scored_as_reference(trainer).tolist() == pytest.approx(expected, rel=1e-5, abs=1e-4)
    assert [steps(trainer)[0][f"rewards/{name}"] for name in ("chosen", "rejected")] == [0, 0]


@pytest.mark.slow
def test_evaluation_report_saving_and_resuming(run, config, tiny_model, tmp_path):
    config = with_test_rows(config, tmp_path / "eval.jsonl", make_pairs(12, seed=5))
    config |= {
        "eval_steps": 2,
        "save_strategy": "steps",
        "save_steps": 2,
        "aot_report": True,
        "aot_report_samples": 2,
    }
    plain = run({**config, "output_dir": str(tmp_path / "plain")})
    fused = run({**config, **KERNELS, "output_dir": str(tmp_path / "fused")})
    checkpoint = str(tmp_path / "fused/checkpoint-2")
    resumed = run(
        {**config, **KERNELS, "resume_from_checkpoint": checkpoint, "output_dir": str(tmp_path / "on")}
    )
    without = run({**config, "resume_from_checkpoint": checkpoint, "output_dir": str(tmp_path / "off")})
    losses = [
        [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
        for trainer in (plain, fused, resumed, without)
    ]
    assert losses[1] == losses[2]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4) and losses[3] == pytest.approx(losses[1], rel=1e-4)
    saved = {name: load_file(tmp_path / name / WEIGHTS) for name in ("plain", "fused", "on", "off")}
    for name, tensor in saved["plain"].items():
        assert tensor.dtype == saved["fused"][name].dtype and tensor.shape == saved["fused"][name].shape
        assert torch.allclose(tensor, saved["fused"][name], atol=1e-4)
        assert saved["fused"][name].equal(saved["on"][name])
    assert saved["plain"].keys() == saved["fused"].keys()
    settings = [
        json.loads((tmp_path / name / "adapter_config.json").read_text()) for name in ("plain", "fused")
    ]
    assert settings[0] == settings[1]
    assert (tmp_path / "fused/dominance/report.json").exists()


# --- What is refused, and what is left off ---------------------------------------------------------

REFUSED = {
    "no boolean": ({"lora_o_kernel": "yes please"}, "`lora_o_kernel: yes please`: must be true or false"),
    "8 bits": ({"load_in_8bit": True}, "`load_in_8bit: True`: the kernels do not read 8-bit weights; remove"),
    "dora": ({"peft_use_dora": True}, "`peft_use_dora: True`: with optimizers of bitsandbytes"),
    "remote code": ({"trust_remote_code": True}, "`trust_remote_code: True`: the kernels rewrite"),
    "no adapter": (
        {"adapter": None, **dict.fromkeys(LORA)},
        "`lora_o_kernel: True` has no effect without `adapter`",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_excludes_a_kernel_stops_before_a_model_is_loaded(load, config, kind):
    more, message = REFUSED[kind]
    with pytest.raises(AOTConfigError) as error:
        load({**config, "base_model": "/nowhere", **more, "lora_o_kernel": more.get("lora_o_kernel") or True})
    assert message in str(error.value)


LATE = {
    "an unknown attention": (
        {"lora_o_kernel": True, "base_model": "cohere"},
        "`lora_o_kernel: true`: axolotl's LoRA kernels do not know the attention of CohereForCausalLM",
    ),
    "on a CPU": (
        {"lora_mlp_kernel": True},
        "`lora_mlp_kernel: true`: it is a Triton kernel, which needs a CUDA GPU",
    ),
    "adapters elsewhere": (
        {"lora_qkv_kernel": True, "lora_target_linear": None, "lora_target_modules": ["q_proj", "v_proj"]},
        "`lora_qkv_kernel: true`: no layer of LlamaForCausalLM has an adapter on all that it fuses",
    ),
    "no embeddings": (
        {"lora_embedding_kernel": True},
        "`lora_embedding_kernel: true`: the embeddings have no adapter",
    ),
    "doubly quantized": (
        {"lora_o_kernel": True, "adapter": "qlora", "load_in_4bit": True},
        "`lora_o_kernel: true`: the kernels read 4-bit weights that are quantized doubly on a CUDA GPU only",
    ),
}


@pytest.mark.parametrize("kind", slow_except(["on a CPU", "adapters elsewhere"], LATE))
def test_what_cannot_be_served_is_refused_by_name(build, config, tiny_model, tmp_path, kind):
    more, message = LATE[kind]
    if "base_model" in more:
        folder = shutil.copytree(tiny_model, tmp_path / "model")
        architectures.make(more["base_model"], vocab_size=300).save_pretrained(folder)
        more = {**more, "base_model": str(folder)}
    with pytest.raises(AOTConfigError) as error:
        build({**config, **more})
    assert message in str(error.value) and str(error.value).endswith("remove it, or set it to false")


def test_an_architecture_that_axolotl_declares_wrong_has_none(build, config):
    trainer = build({key: value for key, value in config.items() if key not in KEYS})
    declared = {
        kind: _Run(DictDefault(model_config_type=kind), trainer, trainer.model).obstacle
        for kind in ("llama", "paddleocr_vl")
    }
    assert declared["llama"] is None
    assert "does not match PaddleOCRAttention's forward" in declared["paddleocr_vl"]


@needs("bitsandbytes", "0.50", "its optimizers run on a GPU only, before")
def test_optimizers_of_bitsandbytes_do_not_tell_torch_what_they_change():
    """Why DoRA is refused: axolotl's kernels look at the version of LoRA's weights."""
    from bitsandbytes.optim import AdamW8bit

    weight = torch.nn.Parameter(torch.ones(128, 128))
    weight.grad = torch.ones_like(weight)
    before = weight._version
    AdamW8bit([weight], lr=0.1).step()
    assert (weight != 1).all() and weight._version == before


def test_on_a_cpu_they_are_off_by_default(build, config):
    trainer = build({key: value for key, value in config.items() if key not in KEYS})
    assert not any("apply_qkv" in vars(module) for module in trainer.model.modules())


CHOSEN = {
    "lora": ({}, set(KEYS)),
    "qlora": ({"adapter": "qlora", "load_in_4bit": True}, set(KEYS)),
    "full": (dict.fromkeys(LORA), set()),
    "dora": ({"peft_use_dora": True}, set()),
    "8 bits": ({"load_in_8bit": True}, set()),
    "remote code": ({"trust_remote_code": True}, set()),
}


@pytest.mark.parametrize("kind", CHOSEN)
def test_on_a_gpu_axolotl_would_choose(load, config, kind):
    more, chosen = CHOSEN[kind]
    cfg = load({**{key: value for key, value in config.items() if key not in KEYS}, **more})
    assert set(_by_default(cfg)) == chosen
    assert cfg.rl.value == "dpo" and not any(cfg[key] for key in KEYS)


def test_another_config_keeps_its_keys():
    cfg = {"lora_o_kernel": None, "lora_r": 4}
    carry_keys(cfg)
    assert cfg == {"lora_o_kernel": None, "lora_r": 4}


# What the MLP's kernel computes, and what it does not: by architecture and activation.
MLPS = {
    "llama": ({}, None),
    "qwen2": ({}, None),
    "llama, gelu": ({"hidden_act": "gelu"}, None),
    "llama, relu": ({"hidden_act": "relu"}, "it has no relu"),
    "gemma2": ({}, "gelu_pytorch_tanh"),
    "falcon_h1": ({"mlp_multipliers": [2.0, 0.5], "mamba_d_ssm": 32, "mamba_n_heads": 4}, "FalconH1MLP"),
}


NO_MAMBA = needs("transformers", "5.16", "a model with Mamba's layers asks a hub for kernels, before")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=NO_MAMBA) if name == "falcon_h1" else name for name in MLPS]
)
def test_other_mlps_are_told_from_numbers(name):
    more, message = MLPS[name]
    model = architectures.make(name, **more)
    policy = get_peft_model(model, LoraConfig(target_modules=LINEAR[:1], task_type="CAUSAL_LM"))
    mlps = [module for path, module in policy.named_modules() if path.endswith(("mlp", "feed_forward"))]
    assert mlps
    run = SimpleNamespace(policy=policy, mlps=mlps, device=torch.device("cpu"), model=type(model).__name__)
    found = _other_mlp(run)
    assert found is None if message is None else message in found
