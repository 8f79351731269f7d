"""The effective batch over two gloo processes, started by torchrun, against one process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=["paired", "unpaired"])
def config(request, paired_config, unpaired_config):
    config = {"paired": paired_config, "unpaired": unpaired_config}[request.param]
    return {**config, "plugins": [*config["plugins"], "tests.on_cpu.OnCPU"], "max_steps": 5, "num_epochs": 3}


def train(
    config: dict, folder: Path, processes: int, micro_batch: int, accumulation: int
) -> list[list[dict]]:
    """The logs of all processes."""
    folder.mkdir()
    config = {
        **config,
        "output_dir": str(folder / "out"),
        "micro_batch_size": micro_batch,
        "gradient_accumulation_steps": accumulation,
    }
    (folder / "config.yml").write_text(yaml.safe_dump(config))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    run = subprocess.run(
        [sys.executable, *launcher, "-m", "axolotl.cli.train", str(folder / "config.yml")],
        cwd=ROOT,
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    logs = [json.loads(path.read_text()) for path in sorted((folder / "out").glob("log-*.json"))]
    assert len(logs) == processes
    return [[entry for entry in log if "loss" in entry] for log in logs]


def test_two_processes_are_one_big_batch(config, tmp_path):
    # 48 pairs, or 84 answers, in batches of 16; in an epoch's last step, where rows are left over,
    # accelerate repeats some so that all processes have equally many
    (one,) = train(config, tmp_path / "one", processes=1, micro_batch=16, accumulation=1)
    first, second = train(config, tmp_path / "two", processes=2, micro_batch=4, accumulation=2)
    for key in ("loss", "grad_norm", "rewards/margins", "dominance/violation"):
        values = [entry[key] for entry in one]
        assert len(set(values)) > 3
        assert [entry[key] for entry in first] == pytest.approx(values, rel=1e-4, abs=2e-5), key
        assert [entry[key] for entry in second] == pytest.approx(values, rel=1e-4, abs=2e-5), key
