"""A cell trained by `axolotl train`, in a process of its own, and scored.

Processes are forked from one that has imported axolotl, which saves half a minute each. May import
`benchmarks.alignment.cells`, `preferences`, `tasks` and, in a process, `scores`, axolotl and torch.
"""

import contextlib
import gc
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from benchmarks.alignment.cells import BASE, Cell, yaml_of
from benchmarks.alignment.preferences import write_data
from benchmarks.alignment.tasks import TASKS

ENVIRONMENT = {
    "AXOLOTL_DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
}
PRELOADED = [
    "axolotl.cli.train",
    "axolotl.core.builders",
    "axolotl.train",
    "trackio",  # TRL's model card imports it, which takes seconds
    "axolotl_aot.training.trainers",
    "axolotl_aot.data.pipeline",
    "benchmarks.alignment.scores",
]


def run_all(cells: list[Cell], base_models: Path, scored: int, workers: int) -> Iterator[dict[str, Any]]:
    """The results of all cells, as they come.

    base_models: a folder of them, by the task's name. scored: problems of a part that each is scored with.
    """
    os.environ.update(ENVIRONMENT)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    jobs = [(cell, base_models / cell.data.task, scored) for cell in cells]
    with context.Pool(workers, maxtasksperchild=1) as pool:
        yield from pool.imap_unordered(_run, jobs)


def _run(job: tuple[Cell, Path, int]) -> dict[str, Any]:
    """Train and score one cell; what axolotl prints is shown only if it fails."""
    cell, base_model, scored = job
    gc.freeze()  # axolotl's DPO trainer collects garbage at every micro-batch; the imports are none
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        log = folder / "log.txt"
        with log.open("w") as file, _output_to(file.fileno()):
            try:
                scores = _train_and_score(cell, base_model, scored, folder)
            except BaseException as error:
                raise RuntimeError(f"{cell.name}\n{log.read_text()[-3000:]}") from error
    return {"cell": json.loads(cell.name), "seconds": round(time.perf_counter() - began, 1), **scores}


def train(cell: Cell, base_model: Path, folder: Path) -> Path:
    """The adapter that `axolotl train` makes of the cell's YAML."""
    from axolotl.cli.train import do_cli
    from transformers import set_seed

    data = write_data(folder / "train.jsonl", cell.data, cell.paired, cell.seed)
    out = folder / "out"
    config = folder / "config.yml"
    config.write_text(yaml.safe_dump(yaml_of(cell, str(base_model), str(data), str(out))))
    # TRL draws LoRA's matrices before the trainer sets the seed: forks would all draw the same
    set_seed(cell.seed)
    do_cli(str(config))
    return out


def _train_and_score(cell: Cell, base_model: Path, scored: int, folder: Path) -> dict[str, Any]:
    from benchmarks.alignment.scores import score_adapter

    adapter = None if cell.method == BASE else train(cell, base_model, folder)
    return score_adapter(TASKS[cell.data.task], base_model, adapter, cell.seed, scored)


@contextlib.contextmanager
def _output_to(descriptor: int) -> Iterator[None]:
    kept = os.dup(1), os.dup(2)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    try:
        yield
    finally:
        for number, old in zip((1, 2), kept, strict=True):
            os.dup2(old, number)
            os.close(old)
