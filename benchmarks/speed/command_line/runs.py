"""One training run by axolotl's command, in a fresh process, and what it took."""

import json
import statistics
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from benchmarks.speed.command_line.yamls import WATCHED
from benchmarks.speed.processes import ENVIRONMENT, last_line


def train(keys: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Train a YAML; or {"failed": the last line of the error}.

    train_runtime: seconds as Trainer logs them. seconds: of a step, the median without the first.
    bytes: the peak of all steps above what was held when the models were loaded; peak_bytes: with that.
    command_seconds: from the command's start to its end. loss, grad_norm: of the first step.
    """
    config = folder / "config.yml"
    config.write_text(yaml.safe_dump(keys, sort_keys=False))
    # what `axolotl train` starts, for one process
    command = [sys.executable, "-m", "axolotl.cli.train", str(config)]
    began = time.perf_counter()
    run = subprocess.run(
        command, cwd=folder, env=_environment(keys["base_model"]), capture_output=True, text=True
    )
    seconds = time.perf_counter() - began
    path = Path(keys["output_dir"]) / WATCHED
    if run.returncode or not path.exists():
        return {"failed": last_line(run.stderr or run.stdout)}
    return {**_read(json.loads(path.read_text())), "command_seconds": seconds}


def _environment(base_model: str) -> dict[str, str]:
    offline = {"HF_HUB_OFFLINE": "1"} if Path(base_model).is_dir() else {}
    return {"AXOLOTL_DO_NOT_TRACK": "1", "TOKENIZERS_PARALLELISM": "false", **offline, **ENVIRONMENT}


def _read(watched: dict[str, Any]) -> dict[str, Any]:
    peak = max(watched["peaks"])
    first = next(log for log in watched["logs"] if "loss" in log)
    return {
        "train_runtime": watched["train_runtime"],
        "seconds": statistics.median(b - a for a, b in pairwise(watched["ends"])),
        "steps": len(watched["ends"]),
        "bytes": peak - watched["held"],
        "peak_bytes": peak,
        "loss": first["loss"],
        "grad_norm": first["grad_norm"],
    }
