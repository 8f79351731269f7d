"""From which checkpoint a run can go on, and whether it is a checkpoint of the same run.

transformers writes a checkpoint's files one after the other, `trainer_state.json` last. A run that was
killed in between leaves a folder that looks like a checkpoint; transformers would take its weights and
count from the first step again, with a new optimizer, without a word.

May import `axolotl_aot.checks`, `handover`; transformers, and nothing of axolotl.
"""

import json
import logging
from pathlib import Path
from typing import Any

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput

from axolotl_aot.checks import AOTConfigError
from axolotl_aot.handover import AOTSetup

LOG = logging.getLogger(__name__)

STATE_FILE = "trainer_state.json"


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
        checkpoint = None
        if resume_from_checkpoint is True or (resume_from_checkpoint and self.setup.auto_resume):
            checkpoint = _last_complete(Path(self.args.output_dir))
        elif resume_from_checkpoint:
            checkpoint = Path(resume_from_checkpoint)
        if checkpoint:
            self.setup.restore(_saved_setup(checkpoint), str(checkpoint))
        return super().train(resume_from_checkpoint=str(checkpoint) if checkpoint else None, **kwargs)


def _read_state(checkpoint: Path) -> dict[str, Any] | None:
    """The checkpoint's trainer state; None where the checkpoint was not written to its end."""
    try:
        return json.loads((checkpoint / STATE_FILE).read_text())
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return None


def _last_complete(folder: Path) -> Path | None:
    """The last checkpoint in an output folder that was written to its end; says which it passes over."""
    checkpoints = [p for p in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if p.name.split("-")[1].isdigit()]
    for checkpoint in sorted(checkpoints, key=lambda path: int(path.name.split("-")[1]), reverse=True):
        if _read_state(checkpoint) is not None:
            return checkpoint
        LOG.warning("%s was not written to its end: the run was killed meanwhile", checkpoint)
    LOG.warning("no complete checkpoint in %s: training starts from the beginning", folder)
    return None


def _saved_setup(checkpoint: Path) -> dict[str, Any]:
    """What `AOTSetup.state` gave when the checkpoint was written."""
    state = _read_state(checkpoint)
    if state is None:
        last = _last_complete(checkpoint.parent)
        instead = f"use {last}" if last else "there is no complete one beside it; train from the start"
        raise AOTConfigError(
            f"`resume_from_checkpoint: {checkpoint}`: it has no complete {STATE_FILE}, so it was not "
            f"written to its end (or is no checkpoint): {instead}"
        )
    try:
        return state["stateful_callbacks"][AOTSetup.__name__]["attributes"]
    except KeyError:
        raise AOTConfigError(
            f"`resume_from_checkpoint: {checkpoint}`: not written by `rl: aot` or `rl: aot_unpaired`, "
            "so there is nothing to go on with; merge its adapter or take its weights as base_model"
        ) from None
