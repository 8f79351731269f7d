"""The YAML, and what each contender changes in it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.speed.errors import UsageError

TRL, TRL_KNOWN = "trl", "trl, reference known"
OURS, OURS_KNOWN = "ours", "ours, reference known"
WATCH = "benchmarks.speed.command_line.watch.WatchPlugin"
WATCHED = "watched.json"  # what that plugin writes into the output folder


@dataclass(frozen=True)
class Run:
    """What all contenders have in common.

    base_model: folder or name. adapter: a key of `ADAPTERS`. micro_batch: in pairs. more, ours: keys of the
    YAML, of all contenders and of this package's.
    """

    base_model: str
    adapter: str = "lora"
    attention: str = "sdpa"
    micro_batch: int = 4
    accumulation: int = 4
    steps: int = 3
    sequence_len: int = 512
    checkpointing: bool = False
    more: dict[str, Any] = field(default_factory=dict)
    ours: dict[str, Any] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """All that are trained on; the first step is not measured by itself."""
        return self.micro_batch * self.accumulation * (self.steps + 1)


OWN_OPTION = {
    "base_model": "base-model",
    "micro_batch_size": "micro-batch",
    "gradient_accumulation_steps": "accumulation",
    "max_steps": "steps",
    "sequence_len": "sequence-len",
}
COMPARED = ("rl", "datasets", "output_dir", "dataset_prepared_path")
_LORA = {"lora_r": 32, "lora_alpha": 64, "lora_target_linear": True}
ADAPTERS: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {"adapter": "lora", **_LORA},
    "qlora": {"adapter": "qlora", "load_in_4bit": True, **_LORA},
}
CUDA = {"bf16": True, "tf32": True, "optimizer": "paged_adamw_8bit"}
CPU = {"bf16": False, "fp16": False, "optimizer": "adamw_torch"}


def _ours(run: Run) -> dict[str, Any]:
    return {
        "rl": "aot",
        "datasets": [{"type": "chat_template"}],
        "aot_report": False,
        **run.ours,
        "plugins": ["axolotl_aot.AOTPlugin", *run.ours.get("plugins", [])],
    }


def _trls(run: Run) -> dict[str, Any]:
    fields = {f"field_{name}": name for name in ("messages", "chosen", "rejected")}
    return {
        "rl": "dpo",
        "dpo_loss_type": ["aot"],
        "remove_unused_columns": False,
        "datasets": [{"type": "chat_template.default", **fields}],
    }


_KNOWN = {"precompute_ref_log_probs": True}
CONTENDERS = {
    TRL: _trls,
    TRL_KNOWN: lambda run: {**_trls(run), **_KNOWN},
    OURS: _ours,
    OURS_KNOWN: lambda run: {**_ours(run), **_KNOWN},
}
DEFAULT = (TRL, OURS, OURS_KNOWN)


def keys_of(contender: str, run: Run, data: Path, folder: Path) -> dict[str, Any]:
    """The contender's YAML for the rows of a file; all that a run writes is below `folder`."""
    own = CONTENDERS[contender](run)
    keys = {**_common(run), **own, **run.more}
    return {
        **keys,
        "datasets": [{**entry, "path": str(data), "split": "train"} for entry in keys["datasets"]],
        "plugins": [*own.get("plugins", []), *run.more.get("plugins", []), WATCH],
        "output_dir": str(folder / "out"),
        "dataset_prepared_path": str(folder / "prepared"),
    }


def _common(run: Run) -> dict[str, Any]:
    checkpointing = {"gradient_checkpointing_kwargs": {"use_reentrant": False}} if run.checkpointing else {}
    return {
        "base_model": run.base_model,
        "chat_template": "tokenizer_default",
        "sequence_len": run.sequence_len,
        **ADAPTERS[run.adapter],
        **(CUDA if torch.cuda.is_available() else CPU),
        "rl_beta": 0.01,
        "gradient_checkpointing": run.checkpointing,
        **checkpointing,
        "micro_batch_size": run.micro_batch,
        "gradient_accumulation_steps": run.accumulation,
        "num_epochs": 1,
        "max_steps": run.steps + 1,
        "learning_rate": 2e-5,
        "lr_scheduler": "constant",
        "attn_implementation": run.attention,
        "dataset_num_proc": 1,
        "logging_steps": 1,
        "save_strategy": "no",
        "val_set_size": 0,
        "seed": 7,
    }


def read_settings(settings: list[str]) -> dict[str, Any]:
    """KEY=VALUE as YAML reads the value; `plugins` are added to those that are there.

    Raises:
        UsageError: a key is another option's, or what is compared.
    """
    pairs = (setting.partition("=") for setting in settings)
    keys = {key.strip(): yaml.safe_load(value) for key, _, value in pairs}
    for key in keys:
        if key in OWN_OPTION:
            raise UsageError(f"--set {key}: give it as --{OWN_OPTION[key]}, which decides on the data, too")
        if key in COMPARED:
            raise UsageError(f"--set {key}: this is what the comparison sets itself")
    return keys
