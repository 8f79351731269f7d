"""One run: a method with its keys, its data and a seed, and its YAML.

Imports `benchmarks.alignment.preferences` only.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.alignment.preferences import Data

BASE = "base"  # the method of a cell that is not trained
PAIRED = {"dpo", "ipo", "aot"}  # the others take answers with a label
OURS = {"plugins": ["axolotl_aot.AOTPlugin"], "aot_report": False}
# The data is not stored and its length not checked: for that axolotl starts processes, which takes as long as
# the training.
THEIRS = {"skip_prepare_dataset": True, "remove_unused_columns": False}


@dataclass(frozen=True)
class Cell:
    """One run.

    samples: of an optimizer step, pairs or answers. keys: further keys of the YAML.
    """

    method: str
    beta: float
    learning_rate: float
    seed: int
    data: Data
    samples: int
    micro_batch: int
    keys: Mapping[str, Any] = field(default_factory=dict)
    epochs: int = 1

    @property
    def paired(self) -> bool:
        return self.method in PAIRED

    @property
    def name(self) -> str:
        """All that it is, as text; results are found by it."""
        return json.dumps(asdict(self), sort_keys=True)


def yaml_of(cell: Cell, base_model: str, data: str, output_dir: str) -> dict[str, Any]:
    """What `axolotl train` is given."""
    return {
        "base_model": base_model,
        **(OURS if cell.method.startswith("aot") else THEIRS),
        "rl": cell.method,
        "rl_beta": cell.beta,
        "datasets": [{"path": data, "type": {"field_prompt": "prompt"}}],
        "dataset_prepared_path": f"{output_dir}/prepared",
        "dataset_num_proc": 1,
        "output_dir": output_dir,
        "val_set_size": 0,
        "sequence_len": 64,
        "adapter": "lora",
        "lora_r": 16,
        "lora_alpha": 32,
        "lora_target_linear": True,
        "micro_batch_size": cell.micro_batch,
        "gradient_accumulation_steps": cell.samples // cell.micro_batch,
        "num_epochs": cell.epochs,
        "dataloader_num_workers": 0,  # a run is a daemonic process, which may have no children
        "optimizer": "adamw_torch",
        "learning_rate": cell.learning_rate,
        "lr_scheduler": "cosine",
        "warmup_ratio": 0.1,
        "logging_steps": 1000,
        "save_strategy": "no",
        "seed": cell.seed,
        "bf16": False,
        "fp16": False,
        "attn_implementation": "sdpa",
        "lora_mlp_kernel": False,
        "lora_qkv_kernel": False,
        "lora_o_kernel": False,
        "lora_embedding_kernel": False,
        "special_tokens": {"pad_token": "<pad>"},
        **cell.keys,
    }
