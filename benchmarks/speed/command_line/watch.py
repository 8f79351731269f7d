"""A plugin of axolotl's that writes down when steps end and how much memory they take; of any `rl:`."""

import json
import time
from pathlib import Path
from typing import Any

from axolotl.integrations.base import BasePlugin
from transformers import TrainerCallback, TrainingArguments

from benchmarks.speed.command_line.yamls import WATCHED
from benchmarks.speed.memory import Meter


class Watch(TrainerCallback):
    """Writes WATCHED into the output folder when training has ended.

    held: bytes when the models were loaded. Trainers and axolotl reset a GPU's peak where they log, so it is
    read at the end of each step.
    """

    def __init__(self, held: int) -> None:
        self._meter = Meter()
        self._held = held
        self._peaks: list[int] = []
        self._ends: list[float] = []
        self._logs: list[dict[str, float]] = []

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._meter.reset()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._meter.wait()
        self._ends.append(time.perf_counter())
        self._peaks.append(self._meter.peak())

    def on_log(self, args: TrainingArguments, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        self._logs.append({key: value for key, value in logs.items() if isinstance(value, (int, float))})
        if "train_runtime" in logs:
            watched = {
                "held": self._held,
                "peaks": self._peaks,
                "ends": self._ends,
                "logs": self._logs,
                "train_runtime": logs["train_runtime"],
            }
            (Path(args.output_dir) / WATCHED).write_text(json.dumps(watched))


class WatchPlugin(BasePlugin):
    """Named in the YAML's `plugins:`."""

    def post_model_load(self, cfg: Any, model: Any) -> None:
        self._held = Meter().now()  # of policy and reference, after the latter

    def add_callbacks_pre_trainer(self, cfg: Any, model: Any) -> list[TrainerCallback]:
        return [Watch(self._held)]
