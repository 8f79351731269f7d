"""A plugin for runs of several processes on a machine without a GPU, and for reading what each did.

What it patches is refused by axolotl or accelerate for want of an accelerator, and nothing else.
"""

import json
import os
from pathlib import Path

from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, ParallelismConfig
from axolotl.integrations.base import BasePlugin
from transformers import TrainerCallback


class LogToFile(TrainerCallback):
    """Writes each process's log to `<output_dir>/log-<rank>.json`, and what its parameters are."""

    def on_train_end(self, args, state, control, model=None, **kwargs):
        folder = Path(args.output_dir)
        folder.mkdir(exist_ok=True)
        rank = os.environ.get("RANK", "0")
        (folder / f"log-{rank}.json").write_text(json.dumps(state.log_history))
        engine = {
            "distributed_type": str(AcceleratorState().distributed_type),
            "parameters": sorted({type(p).__name__ for p in model.parameters()}),
            "zero_stage": sorted({str(hasattr(p, "ds_id")) for p in model.parameters()}),
        }
        (folder / f"engine-{rank}.json").write_text(json.dumps(engine))


def shard_on_cpu() -> None:
    """accelerate leaves the CPU out of FSDP and would train with DDP in its place."""
    build_device_mesh = ParallelismConfig.build_device_mesh
    ParallelismConfig.build_device_mesh = lambda self, device_type: build_device_mesh(self, "cpu")
    init = AcceleratorState.__init__

    def init_with_fsdp(self, *args, fsdp_plugin=None, **kwargs):
        init(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            self.fsdp_plugin = fsdp_plugin
            self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = init_with_fsdp


def deepspeed_on_cpu() -> None:
    """accelerate finds no backend without an accelerator."""
    PartialState._prepare_backend = lambda self, *args: ("gloo", DistributedType.MULTI_CPU)


class OnCPU(BasePlugin):
    def register(self, cfg):
        if cfg.get("fsdp_config"):
            shard_on_cpu()
        if cfg.get("deepspeed"):
            deepspeed_on_cpu()

    def load_datasets(self, cfg, preprocess=False):
        cfg.device_map = {"": "cpu"}  # axolotl gives each process the accelerator of its rank

    def add_callbacks_post_trainer(self, cfg, trainer):
        return [LogToFile()]
