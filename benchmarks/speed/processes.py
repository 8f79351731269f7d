"""Where a contender is measured: in a fresh process, another interpreter's, or this one."""

import gc
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed.job import Job

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
}


def in_its_own_process(job: Job, python: str = sys.executable) -> dict[str, Any]:
    """What `measure` returns; or {"failed": the last line of the error}.

    python: the interpreter; another one than this has nothing of this one's `PYTHONPATH` but the checkout.
    """
    own = python == sys.executable
    environment = ENVIRONMENT if own else {**os.environ, "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory() as folder:
        path = job.write(Path(folder) / "job.json")
        command = [python, "-m", "benchmarks.speed.job", str(path)]
        run = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)
    if run.returncode:
        return {"failed": last_line(run.stderr)}
    return json.loads(run.stdout.strip().splitlines()[-1])


def in_this_process(job: Job) -> dict[str, Any]:
    """The same without the time of imports. Memory is a GPU's only: a CPU's freed memory is used again."""
    gc.collect()
    torch.cuda.empty_cache()
    try:
        result = job.run()
    except Exception as error:  # one that does not fit is a result, and the others are still to come
        return {"failed": last_line(f"{type(error).__name__}: {error}")}
    return result if torch.cuda.is_available() else {k: v for k, v in result.items() if "bytes" not in k}


def last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no output"])[-1][:200]
