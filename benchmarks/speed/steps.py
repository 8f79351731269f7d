"""Seconds and memory of the steps of one contender, in this process."""

import statistics
import tempfile
import time
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from benchmarks.speed import tokens as token_rows
from benchmarks.speed.cases import Case
from benchmarks.speed.memory import Meter
from benchmarks.speed.trainers import make_trainer


class Clock(TrainerCallback):
    """When each step has ended; memory is counted from the end of the first one."""

    def __init__(self) -> None:
        self.meter = Meter()
        self.ends: list[float] = []
        self._cpu: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.meter.wait()
        self.ends.append(time.perf_counter())
        self._cpu.append(time.process_time())
        if len(self.ends) == 1:  # what comes once at the start is not of a step
            self.meter.reset()

    @property
    def seconds(self) -> float:
        """Of a step, the median without the first."""
        return statistics.median(b - a for a, b in pairwise(self.ends))

    @property
    def cpu_seconds(self) -> float:
        """Of a step, of all threads: on a busy machine nearer to what a free one takes."""
        return statistics.median(b - a for a, b in pairwise(self._cpu))


def measure(contender: str, case: Case, tokens: dict[str, list]) -> dict[str, Any]:
    """Train, and return what was measured.

    bytes: the peak of a step above what was held when the models were loaded; peak_bytes: with that.
    loss, grad_norm: of the first step, to see that the work is the same.
    """
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer, held = make_trainer(contender, case, tokens, Path(folder))
        trainer.add_callback(clock)
        trainer.train()
        peak = clock.meter.peak()
    first = next(entry for entry in trainer.state.log_history if "loss" in entry)
    return {
        "seconds": clock.seconds,
        "cpu_seconds": clock.cpu_seconds,
        "tokens_per_second": token_rows.count(tokens) / (case.steps + 1) / clock.seconds,
        "bytes": peak - held,
        "peak_bytes": peak,
        "loss": first["loss"],
        "grad_norm": first["grad_norm"],
        "trl": version("trl"),
    }
