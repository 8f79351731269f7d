"""Trained adapters and whole models, as their folders show them."""

import hashlib
from pathlib import Path

import torch
from axolotl.utils.dict import DictDefault
from axolotl.utils.logging import get_logger
from peft import PeftConfig

from axolotl_aot.scoring.models import ADAPTER_WEIGHTS, another_base

LOG = get_logger(__name__)

WEIGHTS = ("*.safetensors", "*.bin", "*.json")

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
    trained_on = another_base(PeftConfig.from_pretrained(str(folder)), base)
    if trained_on is not None:
        LOG.warning(f"{name} ({folder}) was trained on {trained_on}, and is {use} on {base}")


def matmul_dtype(cfg: DictDefault) -> torch.dtype | None:
    """What a config multiplies matrices in; None for the type of the weights."""
    return torch.bfloat16 if cfg.bf16 else torch.float16 if cfg.fp16 else None


def stamp(folder: Path) -> str:
    """A digest by which the files of a model or an adapter are known again; empty for one of the hub.

    Of names, sizes and times: reading the weights of a large model would take minutes.
    """
    if not folder.is_dir():
        return ""
    files = sorted(path for pattern in WEIGHTS for path in folder.glob(pattern))
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.blake2b(repr(stats).encode(), digest_size=8).hexdigest()
