"""A plugin for runs of several processes on a machine without a GPU, and for reading what each logged."""

import json
import os
from pathlib import Path

from axolotl.integrations.base import BasePlugin
from transformers import TrainerCallback


class LogToFile(TrainerCallback):
    """Writes each process's log to `<output_dir>/log-<rank>.json`."""

    def on_train_end(self, args, state, control, **kwargs):
        folder = Path(args.output_dir)
        folder.mkdir(exist_ok=True)
        rank = os.environ.get("RANK", "0")
        (folder / f"log-{rank}.json").write_text(json.dumps(state.log_history))


class OnCPU(BasePlugin):
    def load_datasets(self, cfg, preprocess=False):
        cfg.device_map = {"": "cpu"}  # axolotl gives each process the accelerator of its rank

    def add_callbacks_post_trainer(self, cfg, trainer):
        return [LogToFile()]
