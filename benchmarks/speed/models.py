"""Models: drawn at random in one of the published shapes, or loaded from a folder."""

import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from benchmarks.speed.cases import Case
from benchmarks.speed.shapes import SHAPES


def load_model(case: Case) -> PreTrainedModel:
    """The case's model on the GPU, or the CPU where there is none; in 4 bits for `qlora`."""
    if case.liger_layers:
        _use_ligers_layers()
    if case.base_model is not None:
        return _from_folder(case.base_model, case)
    config = random_config(case)
    if case.adapter != "qlora":
        return draw(config)
    with tempfile.TemporaryDirectory() as folder:
        draw(config).save_pretrained(folder)
        return _from_folder(folder, case)


def random_config(case: Case, **more: Any) -> LlamaConfig:
    """The configuration of a Llama of the case's shape; more: keys of it, like the tokens that end a text."""
    shape = {"pad_token_id": 0, **SHAPES[case.model], **more}
    shape["vocab_size"] = case.vocabulary or shape["vocab_size"]
    theta = shape.pop("rope_theta", 10_000.0)
    config = LlamaConfig(
        **shape,
        rope_parameters={"rope_type": "default", "rope_theta": theta},
        max_position_embeddings=8192,
        dtype=_dtype(),
    )
    config._attn_implementation = case.attention
    return config


def draw(config: LlamaConfig) -> LlamaForCausalLM:
    """The model with random weights, always the same."""
    torch.manual_seed(0)
    with torch.device(_device()):
        return LlamaForCausalLM._from_config(config, dtype=config.dtype)


def _from_folder(folder: str | Path, case: Case) -> PreTrainedModel:
    quantized = "quantization_config" in AutoConfig.from_pretrained(folder).to_dict()
    keys = {}
    if case.adapter == "qlora" and not quantized:
        keys["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=_dtype()
        )
    return AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=_dtype(),
        attn_implementation=case.attention,
        device_map={"": 0 if _device() == "cuda" else "cpu"},
        **keys,
    )


def _use_ligers_layers() -> None:
    """In all Llamas that this process makes from now on; its losses stay out."""
    from liger_kernel.transformers import apply_liger_kernel_to_llama

    apply_liger_kernel_to_llama(
        rope=True, rms_norm=True, swiglu=True, cross_entropy=False, fused_linear_cross_entropy=False
    )


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _dtype() -> torch.dtype:
    return torch.bfloat16 if torch.cuda.is_available() else torch.float32
