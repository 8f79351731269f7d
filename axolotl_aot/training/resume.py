"""From which checkpoint a run can go on, and whether it is a checkpoint of the same run.

transformers writes a checkpoint's files one after the other, `trainer_state.json` last. A run that was
killed in between leaves a folder that looks like a checkpoint; transformers would take its weights and
count from the first step again, with a new optimizer, without a word.
"""

import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list, is_peft_model
from torch import nn
from torch.distributed.fsdp import StateDictType
from transformers import EarlyStoppingCallback
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import TrainOutput

from axolotl_aot.errors import AOTConfigError
from axolotl_aot.training.fsdp2_fixes import load_into_shards
from axolotl_aot.training.run_setup import AOTSetup

LOG = logging.getLogger(__name__)

STATE_FILE = "trainer_state.json"
COUNTER = "early_stopping_patience_counter"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint's folder as the main process sees it.

    state: its trainer state, None where it was not written to its end. has_optimizer: whether it holds
    what the optimizer and the scheduler need. instead: the last complete one beside an incomplete one.
    """

    path: str
    state: dict[str, Any] | None
    has_optimizer: bool
    instead: Path | None


class ResumeMixin:
    """`train` that goes on from complete checkpoints of the same run only.

    `self.setup` is the `AOTSetup` among the callbacks; transformers writes it into each checkpoint.
    """

    setup: AOTSetup

    def _run_settings(self) -> dict[str, Any]:
        """What a run must not change half-way, by YAML key."""
        raise NotImplementedError

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> TrainOutput:
        """Trainer's `train`.

        Raises:
            AOTConfigError: a checkpoint that is incomplete, or that was trained with other settings.
        """
        self.setup.run_settings = self._run_settings()
        path = None
        if resume_from_checkpoint:
            # the main process looks, and all decide by what it saw: file systems may differ
            found = [self._look(resume_from_checkpoint) if self.accelerator.is_main_process else None]
            (checkpoint,) = broadcast_object_list(found)
            if checkpoint is not None:
                self._go_on(checkpoint)
                path = checkpoint.path
        return super().train(resume_from_checkpoint=path, **kwargs)

    def _look(self, resume_from_checkpoint: str | bool) -> Checkpoint | None:
        """The checkpoint that is asked for; None where that is the last complete one, and there is none."""
        if resume_from_checkpoint is True or self.setup.auto_resume:
            path = _last_complete(Path(self.args.output_dir))
            if path is None:
                LOG.warning("no complete checkpoint in %s: starting anew", self.args.output_dir)
                return None
        else:
            path = Path(resume_from_checkpoint)
        state = _read_state(path)
        instead = _last_complete(path.parent) if state is None else None
        has_optimizer = (path / "scheduler.pt").is_file() or any(path.glob("global_step*"))
        return Checkpoint(str(path), state, has_optimizer, instead)

    def _go_on(self, checkpoint: Checkpoint) -> None:
        key = f"`resume_from_checkpoint: {checkpoint.path}`"
        if checkpoint.state is None:
            instead = checkpoint.instead
            raise AOTConfigError(
                f"{key}: it has no complete {STATE_FILE}, so it was not written to its end (or is no "
                f"checkpoint): {f'use {instead}' if instead else 'no other is complete either; start anew'}"
            )
        saved = checkpoint.state["stateful_callbacks"]
        if AOTSetup.__name__ not in saved:
            raise AOTConfigError(
                f"{key}: not written by `rl: aot` or `rl: aot_unpaired`, so there is nothing to go on with; "
                "merge its adapter into base_model, or take its weights as base_model"
            )
        if not checkpoint.has_optimizer:
            raise AOTConfigError(
                f"{key}: it holds no state of the optimizer (`save_only_model: true`), so training cannot go "
                "on; start anew, without resuming"
            )
        for callback in self.callback_handler.callbacks:
            name = type(callback).__name__
            if isinstance(callback, ExportableState) and name not in saved:
                added = "early_stopping_patience" if name == EarlyStoppingCallback.__name__ else name
                raise AOTConfigError(f"{key}: it was trained without {added}; remove that, or start anew")
            if isinstance(callback, EarlyStoppingCallback):
                # transformers restores it only together with all others, by making them anew
                callback.early_stopping_patience_counter = saved[name]["attributes"][COUNTER]
        attributes = saved[AOTSetup.__name__]["attributes"]
        _require_same_settings(attributes["run_settings"], self.setup.run_settings, checkpoint.path)
        self.setup.one_label_steps = attributes["one_label_steps"]
        self.args.eval_on_start = False  # the start has been

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        model = self.model if model is None else model
        if self.accelerator.is_fsdp2 and is_peft_model(model):
            kind = self.accelerator.state.fsdp_plugin.state_dict_type
            if kind is StateDictType.FULL_STATE_DICT:
                load_into_shards(model, resume_from_checkpoint)


def _read_state(checkpoint: Path) -> dict[str, Any] | None:
    try:
        return json.loads((checkpoint / STATE_FILE).read_text())
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return None


def _last_complete(folder: Path) -> Path | None:
    """The last checkpoint in an output folder that was written to its end; says which it passes over."""
    numbers = {path: re.fullmatch(r"checkpoint-(\d+)", path.name) for path in folder.glob("checkpoint-*")}
    checkpoints = [path for path, number in numbers.items() if number]
    for checkpoint in sorted(checkpoints, key=lambda path: int(numbers[path][1]), reverse=True):
        if _read_state(checkpoint) is not None:
            return checkpoint
        LOG.warning("%s was not written to its end: the run was killed meanwhile", checkpoint)
    return None


def _require_same_settings(before: dict[str, Any], now: dict[str, Any], checkpoint: str) -> None:
    changed = [
        f"`{key}: {now.get(key)}` (the checkpoint: {before.get(key)})"
        for key in {**before, **now}
        if before.get(key) != now.get(key)
    ]
    if changed:
        raise AOTConfigError(
            f"cannot resume from {checkpoint} with other settings: {', '.join(changed)}. Set them back, or "
            "start a new run, with another output_dir and without resuming"
        )
