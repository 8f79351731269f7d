"""A plugin for runs of several processes on a machine without a GPU, and for reading what each did.

What it patches is refused by axolotl or accelerate for want of an accelerator, and nothing else.
"""

import json
import os
import signal
from pathlib import Path

import axolotl.utils.trainer
import deepspeed
import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, ParallelismConfig
from axolotl.integrations.base import BasePlugin
from axolotl.loaders.model import ModelLoader
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback, set_seed
from transformers.trainer_callback import ExportableState

from axolotl_aot.training import graph_memory


class LogToFile(TrainerCallback):
    """Writes each process's log, and what engine ran, to `<output_dir>/{log,engine}-<rank>.json`."""

    def on_train_begin(self, args, state, control, model=None, optimizer=None, **kwargs):
        # as long as ZeRO-3's parameters are not gathered, each process holds its part of them
        engine = {
            "distributed_type": str(AcceleratorState().distributed_type),
            "parameters": sorted({type(p).__name__ for p in model.parameters()}),
            "held": sum(
                p.to_local().numel() if isinstance(p, DTensor) else p.numel() for p in model.parameters()
            ),
            "optimizer": type(optimizer.optimizer).__name__,
            "partitions_gradients": getattr(optimizer.optimizer, "partition_gradients", None),
        }
        self._write(args, "engine", engine)

    def on_train_end(self, args, state, control, **kwargs):
        self._write(args, "log", state.log_history)

    @staticmethod
    def _write(args, name, content):
        folder = Path(args.output_dir)
        folder.mkdir(exist_ok=True)
        (folder / f"{name}-{args.process_index}.json").write_text(json.dumps(content))


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
    """accelerate finds no backend without an accelerator; DeepSpeed would compile one of its own."""
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    PartialState._prepare_backend = lambda self, *args: ("gloo", DistributedType.MULTI_CPU)


def load_on_cpu() -> None:
    """axolotl loads each process's model to the accelerator of its rank."""
    set_device_map = ModelLoader._set_device_map_config

    def set_cpu(self):
        self.cfg.device_map = {"": "cpu"}
        set_device_map(self)

    ModelLoader._set_device_map_config = set_cpu


class OnCPU(BasePlugin):
    def register(self, cfg):
        load_on_cpu()
        # a CUDA build of torch without a driver takes this question ill
        axolotl.utils.trainer.check_cuda_p2p_ib_support = lambda: True
        if cfg.get("fsdp_config"):
            shard_on_cpu()
        if cfg.get("deepspeed"):
            deepspeed_on_cpu()

    def add_callbacks_post_trainer(self, cfg, trainer):
        return [LogToFile()]


class SeedBeforeTrainer(BasePlugin):
    """For TRL's trainers, which draw LoRA's matrices before they set the seed; ours sets it itself."""

    def add_callbacks_pre_trainer(self, cfg, model):
        set_seed(cfg.seed or 42)
        return []


class Killer(TrainerCallback, ExportableState):
    """Kills a process with SIGKILL at the moment that KILL=moment:step names."""

    def __init__(self):
        self.moment, _, step = os.environ.get("KILL", ":-1").partition(":")
        self.step = int(step)
        self.done = -1  # steps done

    def _kill(self, moment):
        if (moment, self.done) == (self.moment, self.step):
            os.kill(os.getpid(), signal.SIGKILL)

    def on_train_begin(self, args, state, control, **kwargs):
        self.done = state.global_step

    def on_substep_end(self, args, state, control, **kwargs):
        if args.process_index == args.world_size - 1:
            self._kill("in a step after")

    def on_step_end(self, args, state, control, **kwargs):
        self.done = state.global_step

    def state(self):  # the first process is asked when all of a checkpoint but the trainer's state is written
        self._kill("saving")
        return {"args": {}, "attributes": {}}


class KillOnOrder(BasePlugin):
    def add_callbacks_pre_trainer(self, cfg, model):
        return [Killer()]


class CtrlC(TrainerCallback):
    """As if Ctrl-C was pressed after two steps."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 2:
            os.kill(os.getpid(), signal.SIGINT)


class InterruptAfterTwoSteps(BasePlugin):
    def add_callbacks_post_trainer(self, cfg, trainer):
        return [CtrlC()]


class EndBeforeSaving(BasePlugin):
    """For what cannot save on a CPU."""

    def add_callbacks_post_trainer(self, cfg, trainer):
        return [Ender()]


class Ender(TrainerCallback):
    def on_train_end(self, args, state, control, **kwargs):
        torch.distributed.barrier()
        os._exit(0)


class MemoryOnFirstProcess(BasePlugin):
    """The others have no room for graphs that are kept from scoring to training."""

    def register(self, cfg):
        if os.environ.get("RANK", "0") != "0":
            graph_memory.CPU_BYTES = 0


class ShortOfMemoryOnSecondProcess(BasePlugin):
    """It runs out of memory in its second step, of eight micro-batches, in the first one's training pass."""

    def add_callbacks_post_trainer(self, cfg, trainer):
        if os.environ["RANK"] == "1":
            passes = iter(range(1_000))

            def fail(*_):
                # the eight of the first step, and the six graphs of the second
                if torch.is_grad_enabled() and next(passes) == 8 + 6:
                    raise torch.OutOfMemoryError("tried to allocate more than there is")

            layers = (m for name, m in trainer.model.named_modules() if name.endswith("layers.0"))
            next(layers).register_forward_pre_hook(fail)
        return []
