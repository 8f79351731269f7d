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

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from transformers import EarlyStoppingCallback, TrainerCallback, TrainerState
from transformers.trainer_callback import ExportableState

from axolotl_aot.config import AOTArgs
from axolotl_aot.errors import AOTConfigError
from axolotl_aot.scoring.models import ADAPTER_CONFIG
from axolotl_aot.training.restored_settings import of_adapter

LOG = logging.getLogger(__name__)

STATE_FILE = "trainer_state.json"
COUNTER = "early_stopping_patience_counter"
# Under which names transformers saves `RunState`: its class's; the second one is of older checkpoints.
RUN_STATE_NAMES = ("RunState", "AOTSetup")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint's folder as the main process sees it.

    state: its trainer state, None where it was not written to its end. has_optimizer: whether it holds
    what the optimizer and the scheduler need. adapter: PEFT's configuration, None where there is none.
    instead: the last complete one beside an incomplete one.
    """

    path: str
    state: dict[str, Any] | None
    has_optimizer: bool
    adapter: dict[str, Any] | None
    instead: Path | None


class RunState(TrainerCallback, ExportableState):
    """What a checkpoint keeps of an AOT run; transformers writes `state` into its trainer state.

    settings: what must not change when the run is resumed, by YAML key. restored: what cannot change then,
    as the checkpoint brings it back. one_label_steps: how many sorts so far had one label only.
    """

    def __init__(self) -> None:
        self.settings: dict[str, Any] = {}
        self.restored: dict[str, Any] = {}
        self.one_label_steps = 0

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Be known to transformers, which would fail to save what a resumed checkpoint has not had."""
        state.stateful_callbacks[type(self).__name__] = self.state()

    def state(self) -> dict[str, Any]:
        saved = {
            "run_settings": self.settings,
            "restored_settings": self.restored,
            "one_label_steps": self.one_label_steps,
        }
        return {"args": {}, "attributes": saved}


def find_checkpoint(
    resume_from_checkpoint: str | bool, *, output_dir: Path, newest: bool, accelerator: Accelerator
) -> Checkpoint | None:
    """The checkpoint that is asked for; None if that is the newest complete one and there is none.

    The main process looks, and all decide by what it saw: file systems may differ.

    newest: whether axolotl has chosen the checkpoint, as the newest one.
    """
    found = None
    if accelerator.is_main_process:
        found = _look(resume_from_checkpoint, output_dir, newest)
    (found,) = broadcast_object_list([found])
    return found


def go_on_from(checkpoint: Checkpoint, run_state: RunState, callbacks: list[TrainerCallback]) -> None:
    """Restore what transformers does not restore by itself.

    callbacks: the trainer's, `run_state` among them.

    Raises:
        AOTConfigError: a checkpoint that is incomplete, or that was trained with other settings.
    """
    saved = _require_resumable(checkpoint)
    key = _key(checkpoint)
    for callback in callbacks:
        name = type(callback).__name__
        if isinstance(callback, ExportableState) and callback is not run_state and name not in saved:
            added = "early_stopping_patience" if name == EarlyStoppingCallback.__name__ else name
            raise AOTConfigError(f"{key}: it was trained without {added}; remove that, or start anew")
        if isinstance(callback, EarlyStoppingCallback):
            # transformers restores it only together with all others, by making them anew
            callback.early_stopping_patience_counter = saved[name]["attributes"][COUNTER]
    attributes = _run_state_in(saved)["attributes"]
    # a key that did not exist when the checkpoint was written had the effect of its default
    before = {**AOTArgs().model_dump(), **attributes["run_settings"]}
    restored = attributes.get("restored_settings")
    if restored is None:  # an older checkpoint, of which only the adapter is known
        restored = of_adapter(checkpoint.adapter) if checkpoint.adapter else {}
    now = {key: value for key, value in run_state.restored.items() if key in restored}
    _require_same_settings({**before, **restored}, {**run_state.settings, **now}, checkpoint.path)
    run_state.one_label_steps = attributes["one_label_steps"]


def _look(resume_from_checkpoint: str | bool, output_dir: Path, newest: bool) -> Checkpoint | None:
    if resume_from_checkpoint is True or newest:
        path = _last_complete(output_dir)
        if path is None:
            LOG.warning("no complete checkpoint in %s: starting anew", output_dir)
            return None
    else:
        path = Path(resume_from_checkpoint)
    state = _read_json(path / STATE_FILE)
    instead = _last_complete(path.parent) if state is None else None
    has_optimizer = (path / "scheduler.pt").is_file() or any(path.glob("global_step*"))
    return Checkpoint(str(path), state, has_optimizer, _read_json(path / ADAPTER_CONFIG), instead)


def _require_resumable(checkpoint: Checkpoint) -> dict[str, Any]:
    """The callbacks' states in a checkpoint that is complete and of an AOT run."""
    key = _key(checkpoint)
    if checkpoint.state is None:
        instead = checkpoint.instead
        raise AOTConfigError(
            f"{key}: it has no complete {STATE_FILE}, so it was not written to its end (or is no "
            f"checkpoint): {f'use {instead}' if instead else 'no other is complete either; start anew'}"
        )
    saved = checkpoint.state["stateful_callbacks"]
    if _run_state_in(saved) is None:
        raise AOTConfigError(
            f"{key}: not written by `rl: aot` or `rl: aot_unpaired`, so there is nothing to go on with; "
            "merge its adapter into base_model, or take its weights as base_model"
        )
    if not checkpoint.has_optimizer:
        raise AOTConfigError(
            f"{key}: it holds no state of the optimizer (`save_only_model: true`), so training cannot go "
            "on; start anew, without resuming"
        )
    return saved


def _run_state_in(saved: dict[str, Any]) -> dict[str, Any] | None:
    return next((saved[name] for name in RUN_STATE_NAMES if name in saved), None)


def _key(checkpoint: Checkpoint) -> str:
    return f"`resume_from_checkpoint: {checkpoint.path}`"


def _read_json(file: Path) -> dict[str, Any] | None:
    """What a file holds; None where it is not there, or not written to its end."""
    try:
        return json.loads(file.read_text())
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return None


def _last_complete(folder: Path) -> Path | None:
    """The last checkpoint in an output folder that was written to its end; says which it passes over."""
    numbers = {path: re.fullmatch(r"checkpoint-(\d+)", path.name) for path in folder.glob("checkpoint-*")}
    checkpoints = [path for path, number in numbers.items() if number]
    for checkpoint in sorted(checkpoints, key=lambda path: int(numbers[path][1]), reverse=True):
        if _read_json(checkpoint / STATE_FILE) is not None:
            return checkpoint
        LOG.warning("%s was not written to its end: the run was killed meanwhile", checkpoint)
    return None


def _require_same_settings(before: dict[str, Any], now: dict[str, Any], checkpoint: str) -> None:
    changed = [
        f"`{key}: {now.get(key)}` (the checkpoint: {before.get(key)})"
        for key in now  # what is not among these has no effect on this run
        if before.get(key) != now.get(key)
    ]
    if changed:
        raise AOTConfigError(
            f"cannot resume from {checkpoint} with other settings: {', '.join(changed)}. Set them back, or "
            "start a new run, with another output_dir and without resuming"
        )
