"""Two processes as a user starts them: `axolotl train` with accelerate and with torchrun."""

import subprocess

import pytest
import yaml

from tests.processes import AXOLOTL, ENVIRONMENT, ROOT, Run

LAUNCHERS = {
    "accelerate": "--multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no",
    "torchrun": "--standalone --nproc_per_node 2",
}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_processes_are_one_big_batch(processes, paired_config, tmp_path, launcher):
    config = {**paired_config, "plugins": [*paired_config["plugins"], "tests.on_cpu.OnCPU"]}
    whole = processes.train({**config, "micro_batch_size": 16}, tmp_path / "whole")

    cut = {"micro_batch_size": 4, "gradient_accumulation_steps": 2, "output_dir": str(tmp_path / "out")}
    (tmp_path / "config.yml").write_text(yaml.safe_dump({**config, **cut}))
    command = [
        str(AXOLOTL),
        "train",
        "config.yml",
        "--launcher",
        launcher,
        "--",
        *LAUNCHERS[launcher].split(),
    ]
    env = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, cwd=tmp_path, env={**ENVIRONMENT, **env}, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    assert (tmp_path / "out/dominance/report.html").exists()
    for steps in Run(tmp_path, [0, 0], run.stdout).steps:  # of two processes, no more and no fewer
        for key in ("loss", "grad_norm"):
            expected = [step[key] for step in whole.steps[0]]
            assert [step[key] for step in steps] == pytest.approx(expected, rel=1e-4), key
