"""Trained adapters and whole models, as their folders show them."""

from pathlib import Path

import torch
from axolotl.utils.dict import DictDefault
from axolotl.utils.logging import get_logger
from peft import PeftConfig

from axolotl_aot.scoring.models import ADAPTER_WEIGHTS

LOG = get_logger(__name__)

WEIGHT_FILES = {
    "adapter": (ADAPTER_WEIGHTS, "adapter_model.bin"),
    "model": (
        "model.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
    ),
}


def kind_of(folder: Path) -> str | None:
    """Which of `WEIGHT_FILES` a folder holds; None for neither."""
    return next(
        (kind for kind, files in WEIGHT_FILES.items() if any((folder / f).is_file() for f in files)), None
    )


def nothing_in(folder: Path) -> str:
    """What to say of a folder that holds neither."""
    return f"no trained adapter or model there ({' or '.join(files[0] for files in WEIGHT_FILES.values())})"


def warn_of_another_base(name: str, folder: Path, base: str, use: str) -> None:
    """Say so where an adapter was trained on another model. use: what is done with it, such as `scored`."""
    trained_on = PeftConfig.from_pretrained(str(folder)).base_model_name_or_path
    if trained_on and Path(trained_on).resolve() != Path(base).resolve():
        LOG.warning(f"{name} ({folder}) was trained on {trained_on}, and is {use} on {base}")


def matmul_dtype(cfg: DictDefault) -> torch.dtype | None:
    """What a config multiplies matrices in; None for the type of the weights."""
    return torch.bfloat16 if cfg.bf16 else torch.float16 if cfg.fp16 else None
