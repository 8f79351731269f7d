"""axolotl's fused LoRA kernels under AOT: the keys `lora_qkv_kernel`, `lora_o_kernel`, `lora_mlp_kernel` and
`lora_embedding_kernel`.

axolotl applies them when it has loaded a model, and leaves them off under `rl:`, where TRL's trainer makes
the adapter only later. So the plugin keeps the keys from axolotl (`carry_keys`), and has axolotl's own
functions apply the kernels when the trainer is there (`apply_lora_kernels`): where the YAML asks for them, or
where axolotl would switch them on for supervised fine-tuning.

The reference is scored by the kernels as well, with its adapter or with none, which they look up in each
forward pass. So both models' log-probabilities are rounded alike, and the first rewards are 0.
"""

import copy
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from axolotl.model_support import check_capability, get_model_support
from axolotl.utils.dict import DictDefault
from axolotl.utils.logging import get_logger
from axolotl.utils.schemas.config import AxolotlConfigWCapabilities
from peft import PeftModelForCausalLM
from peft.tuners import lora
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import Trainer

from axolotl_aot.config import LORA_KERNELS
from axolotl_aot.errors import AOTConfigError
from axolotl_aot.scoring.scorer import MIXED_PRECISION

LOG = get_logger(__name__)

REMEDY = "remove it, or set it to false"
# What axolotl refuses beside the kernels, or what is wrong with them, known before a model is loaded.
NOT_BESIDE = {
    "load_in_8bit": "the kernels do not read 8-bit weights",
    "trust_remote_code": "the kernels rewrite the attention of transformers' own models",
    # they look for changes that torch has noted, and these optimizers do not tell it of theirs
    "peft_use_dora": "with optimizers of bitsandbytes the kernels would keep DoRA's norms of the first step",
    "nvfp4_merge_aware": "the kernels compute the projections without PEFT, which has to round them",
    "fp32_norms": "the kernels need what the norms give in the precision of the matrix products",
}


def carry_keys(cfg: MutableMapping[str, Any]) -> None:
    """Move the kernels' keys of a translated config to where axolotl does not act on them.

    Raises:
        AOTConfigError: a value that is neither true nor false, or a kernel beside a key that excludes it.
    """
    asked = {key: cfg[key] for key in KERNELS if cfg.get(key) is not None}
    for key, value in asked.items():
        if not isinstance(value, bool):
            raise AOTConfigError(f"`{key}: {value}`: must be true or false")
        excluding = next((other for other in NOT_BESIDE if value and cfg.get(other)), None)
        if excluding:
            raise AOTConfigError(
                f"`{key}: true` with `{excluding}: {cfg[excluding]}`: {NOT_BESIDE[excluding]}; {REMEDY}"
            )
        del cfg[key]
    if asked:
        cfg[LORA_KERNELS] = asked


def apply_lora_kernels(cfg: DictDefault, trainer: Trainer) -> None:
    """Let a trainer's policy compute by fused kernels, those that are asked for or that axolotl would choose.

    Raises:
        AOTConfigError: a kernel that the YAML asks for and that this run cannot have.
    """
    policy = trainer.accelerator.unwrap_model(trainer.model)
    asked = cfg.get(LORA_KERNELS)
    on_gpu = trainer.accelerator.device.type == "cuda"  # what axolotl's kernels are made for
    by_default = _by_default(cfg) if on_gpu and not asked else []
    wanted = [key for key, value in asked.items() if value] if asked else by_default
    if not wanted or not isinstance(policy, PeftModelForCausalLM):
        return
    run = _Run(cfg, trainer, policy)
    obstacles = {key: run.obstacle or KERNELS[key](run) for key in wanted}
    for key, obstacle in obstacles.items():
        if asked and obstacle:
            raise AOTConfigError(f"`{key}: true`: {obstacle}; {REMEDY}")
    served = [key for key in wanted if not obstacles[key]]
    if served:
        from axolotl.monkeypatch.lora_kernels import apply_lora_kernel_patches

        _skip_idle_dropout(policy)
        apply_lora_kernel_patches(policy, DictDefault({**cfg, **{key: key in served for key in KERNELS}}))
    LOG.info("LoRA kernels: %s", ", ".join(served) or "none")
    for key in set(wanted) - set(served):
        if obstacles[key] != NOTHING_TO_DO:
            LOG.info("%s is off: %s", key, obstacles[key])


def _by_default(cfg: DictDefault) -> list[str]:
    """The kernels that axolotl would switch on for supervised fine-tuning."""
    excluding = next((key for key in NOT_BESIDE if cfg.get(key)), None)
    if excluding:
        LOG.info("LoRA kernels are off with `%s: %s`: %s", excluding, cfg[excluding], NOT_BESIDE[excluding])
        return []
    supervised = {**cfg, "rl": None, "capabilities": {"n_gpu": cfg.world_size or 1}}
    chosen = AxolotlConfigWCapabilities.check_auto_enable_lora_kernels(supervised)
    return [key for key in KERNELS if chosen.get(key)]


def _skip_idle_dropout(policy: nn.Module) -> None:
    """TRL has set dropout to 0; the kernels would still copy their input for it."""
    for module in policy.modules():
        if isinstance(module, LoraLayer):
            for name, dropout in module.lora_dropout.items():
                if isinstance(dropout, nn.Dropout) and dropout.p == 0:
                    module.lora_dropout[name] = nn.Identity()


# --- What stands in a kernel's way ----------------------------------------------------------------

NOTHING_TO_DO = "the embeddings have no adapter"
HOOKED = "the kernels would step past what hooks a layer's modules, such as a device_map over several devices"


@dataclass(eq=False)
class _Run:
    """What decides which kernels a run can have."""

    cfg: DictDefault
    trainer: Trainer
    policy: PeftModelForCausalLM

    @property
    def model(self) -> str:
        return type(self.policy.get_base_model()).__name__

    @property
    def device(self) -> torch.device:
        return self.trainer.accelerator.device

    @property
    def matmul_dtype(self) -> torch.dtype | None:
        """The type that matrices are multiplied in under mixed precision."""
        return MIXED_PRECISION.get(self.trainer.accelerator.mixed_precision)

    @cached_property
    def layers(self) -> list[nn.Module]:
        """The model's layers as axolotl finds them; none where it does not."""
        from axolotl.monkeypatch.lora_kernels import get_layers

        try:
            return list(get_layers(self.policy))
        except (NotImplementedError, AttributeError):  # what it raises for a model that it does not know
            return []

    @cached_property
    def attentions(self) -> list[nn.Module]:
        from axolotl.monkeypatch.lora_kernels import find_self_attn_in_layer

        return [attention for layer in self.layers for attention in find_self_attn_in_layer(layer)]

    @cached_property
    def mlps(self) -> list[nn.Module]:
        from axolotl.monkeypatch.lora_kernels import find_mlp_in_layer

        return [mlp for layer in self.layers for *_, mlp in find_mlp_in_layer(layer)]

    @cached_property
    def obstacle(self) -> str | None:
        """What stands in the way of all kernels."""
        accelerator = self.trainer.accelerator
        architecture = self.cfg.model_config_type
        try:  # as axolotl's loader asks: 0.18 and 0.19 keep the answers in different forms
            check_capability(get_model_support(architecture), "lora_kernels", architecture)
        except ValueError as declared:
            return f"axolotl's LoRA kernels are wrong for {self.model} ({declared})"
        if self.trainer.is_fsdp_enabled and not accelerator.is_fsdp2:
            return "axolotl's LoRA kernels do not run over FSDP1 (FSDP2: `fsdp_version: 2`)"
        if not self.layers:
            return f"axolotl's LoRA kernels do not find the layers of {self.model}"
        return None


def _no_qkv(run: _Run) -> str | None:
    groups = [[p for p in (a.q_proj, a.k_proj, a.v_proj) if p is not None] for a in run.attentions]
    return _not_fusable(run, groups, "q_proj, k_proj and v_proj") or _other_attention(run)


def _no_o(run: _Run) -> str | None:
    return _not_fusable(run, [[a.o_proj] for a in run.attentions], "o_proj") or _other_attention(run)


def _no_mlp(run: _Run) -> str | None:
    if run.device.type != "cuda":
        return "it is a Triton kernel, which needs a CUDA GPU"
    if run.cfg.tiled_mlp:
        return "it would replace the MLP that `tiled_mlp: true` computes in tiles"
    if any("forward" in vars(mlp) for mlp in run.mlps):
        return HOOKED
    groups = [[mlp.gate_proj, mlp.up_proj, mlp.down_proj] for mlp in run.mlps]
    return _not_fusable(run, groups, "gate_proj, up_proj and down_proj") or _other_mlp(run)


def _no_embedding(run: _Run) -> str | None:
    embedding = run.policy.get_input_embeddings()
    if not isinstance(embedding, LoraLayer):
        return NOTHING_TO_DO
    if type(embedding) is not lora.Embedding or type(embedding.base_layer) is not nn.Embedding:
        return f"it does not know {_kind(embedding)}"
    if embedding.lora_variant or "forward" in vars(embedding):
        return "its embeddings are not PEFT's plain ones"
    return None


KERNELS: dict[str, Callable[[_Run], str | None]] = {
    "lora_qkv_kernel": _no_qkv,
    "lora_o_kernel": _no_o,
    "lora_mlp_kernel": _no_mlp,
    "lora_embedding_kernel": _no_embedding,
}


def _not_fusable(run: _Run, groups: list[list[nn.Module]], names: str) -> str | None:
    """Why no group of projections can be fused, or not one that has adapters; others stay as they are."""
    adapted = [group for group in groups if all(isinstance(projection, LoraLayer) for projection in group)]
    if not adapted:
        return f"no layer of {run.model} has an adapter on all that it fuses ({names})"
    return next(filter(None, (_odd(run, projection) for group in adapted for projection in group)), None)


def _odd(run: _Run, projection: LoraLayer) -> str | None:
    """Why the kernels would not compute what PEFT does in a projection."""
    from bitsandbytes.nn import Linear4bit
    from peft.tuners.lora import bnb

    base = projection.base_layer
    kinds = {lora.Linear: nn.Linear, bnb.Linear4bit: Linear4bit}
    if type(base) is not kinds.get(type(projection)):
        return f"the kernels do not know {_kind(projection)}"
    if projection.lora_variant:
        variants = {type(variant).__name__ for variant in projection.lora_variant.values()}
        return f"the kernels do not know PEFT's {', '.join(variants)}"
    if "forward" in vars(projection) or "forward" in vars(base):
        return HOOKED
    dtype = base.weight.dtype
    if isinstance(base, Linear4bit):
        state = base.weight.quant_state
        if state is None or state.quant_type != "nf4":
            return "the kernels read 4-bit weights of the type nf4 only"
        if state.nested and base.weight.device.type != "cuda":
            return "the kernels read 4-bit weights that are quantized doubly on a CUDA GPU only"
        dtype = state.dtype
    if run.matmul_dtype not in (None, dtype):
        return f"the base model is held in {dtype}, and multiplied in {run.matmul_dtype}"
    return None


def _kind(projection: LoraLayer) -> str:
    return f"a {type(projection).__name__} adapter on a {type(projection.base_layer).__name__}"


# --- Attention ------------------------------------------------------------------------------------


def _other_attention(run: _Run) -> str | None:
    """Rewrites the forward pass of the model's attention class; why that could not be done."""
    from axolotl.monkeypatch.lora_kernels import patch_self_attn_lora

    if any("forward" in vars(attention) for attention in run.attentions):
        return HOOKED
    try:
        patch_self_attn_lora(run.cfg)
    except (AssertionError, ValueError):  # code that it does not know; a class that it does not find
        return f"axolotl's LoRA kernels do not know the attention of {run.model}"
    for kind in {type(attention) for attention in run.attentions}:
        if "apply_qkv" not in kind.forward.__code__.co_names:
            return f"axolotl's LoRA kernels do not know {kind.__name__}"
        _let_others_be(kind)
    return None


def _let_others_be(kind: type[nn.Module]) -> None:
    """Other models of the class in this process, such as one that is loaded later, compute as before."""
    from axolotl.monkeypatch.lora_kernels import original_apply_o, original_apply_qkv

    kind.apply_qkv, kind.apply_o = original_apply_qkv, original_apply_o


# --- MLP ------------------------------------------------------------------------------------------


class _Times(nn.Module):
    def __init__(self, factor: float):
        super().__init__()
        self.factor = factor

    def forward(self, inputs: Tensor) -> Tensor:
        return self.factor * inputs


# What the kernels compute, by their names of activations; the GELU is the exact one.
ACTIVATIONS = {"silu": nn.functional.silu, "gelu": nn.functional.gelu}


def _other_mlp(run: _Run) -> str | None:
    """Why a layer's MLP is not `down(activation(gate(x)) * up(x))` with the kernel's activation.

    Found out with numbers in place of the projections.
    """
    settings = run.policy.config.get_text_config().to_dict()
    names = ("hidden_act", "hidden_activation", "mlp_hidden_act")  # where axolotl looks, in this order
    name = str(next((settings[key] for key in names if key in settings), None))
    activation = ACTIVATIONS.get("gelu" if "gelu" in name else name)
    if activation is None:
        return f"it has no {name}, {run.model}'s activation"
    inputs = torch.linspace(-4, 4, 64, device=run.device).reshape(1, 8, 8)
    expected = 3 * (activation(0.5 * inputs) * (2 * inputs))
    for mlp in {type(mlp): mlp for mlp in run.mlps}.values():
        outputs = _with_numbers(mlp, inputs, gate=0.5, up=2.0, down=3.0)
        if outputs is None or not torch.allclose(outputs, expected, atol=1e-5):
            return f"{type(mlp).__name__} of {run.model} computes something else than the kernel ({name})"
    return None


def _with_numbers(mlp: nn.Module, inputs: Tensor, **factors: float) -> Tensor | None:
    """What a module gives with factors in place of its projections; None where it needs more of them."""
    twin = copy.copy(mlp)
    numbers = {f"{name}_proj": _Times(factor) for name, factor in factors.items()}
    twin.__dict__["_modules"] = {**mlp._modules, **numbers}
    try:
        with torch.no_grad(), torch.autocast(inputs.device.type, enabled=False):
            return type(mlp).forward(twin, inputs)
    except (AttributeError, TypeError):
        return None
