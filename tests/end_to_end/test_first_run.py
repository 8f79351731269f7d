"""The first run as a user has it: axolotl's real commands, each in its own process."""

import json
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.processes import AXOLOTL, ENVIRONMENT

# the one that `make test` runs is in test_launchers.py
pytestmark = [pytest.mark.slow, pytest.mark.timing]


def axolotl(*arguments: str) -> str:
    command = [str(AXOLOTL), *arguments]
    run = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    return run.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("first") / "run"
    axolotl("aot-quickstart", str(folder))
    return folder


def test_alignment_moves_the_answers_from_wrong_to_right(folder):
    for method in ("aot", "aot_unpaired"):
        axolotl("train", str(folder / f"{method}.yml"))
    table = axolotl("aot-quickstart", str(folder), "--rates")
    reports = [folder / f"outputs/{method}/dominance/report.html" for method in ("aot", "aot_unpaired")]
    assert [line.strip() for line in table.splitlines()[-2:]] == list(map(str, reports))
    for report in reports:
        (run,) = json.loads(report.with_suffix(".json").read_text())["runs"].values()
        before, after = (run["comparisons"]["log_probabilities"][when] for when in ("before", "after"))
        assert not before["first_order"]["holds"] and after["first_order"]["holds"]
        assert run["comparisons"]["rewards"]["after"]["first_order"]["holds"]
    rows = re.findall(r"^(\w+) +([\d.]+)% +([\d.]+)% +([\d.]+)%$", table, re.MULTILINE)
    rates = {name: [float(rate) for rate in row] for name, *row in rows}
    assert set(rates) == {"base", "aot", "aot_unpaired"}
    right, wrong, malformed = rates.pop("base")
    assert 40 <= right <= 60 and 40 <= wrong <= 60
    for method, row in rates.items():
        assert row[0] >= 85, method
        assert row[2] <= malformed + 5, method


def test_four_methods_in_one_figure_within_a_minute(folder):
    for method in ("dpo", "kto"):  # the others are trained above
        axolotl("train", str(folder / f"{method}.yml"))
    others = [f"--compare={name}={folder / 'outputs' / name}" for name in ("aot_unpaired", "dpo", "kto")]
    began = time.monotonic()
    printed = axolotl("aot-report", str(folder / "aot.yml"), *others)
    assert time.monotonic() - began < 60  # imports included
    page = Path(printed.splitlines()[-1].removeprefix("Dominance report: "))
    runs = json.loads(page.with_suffix(".json").read_text())["runs"]
    assert list(runs) == ["aot", "aot_unpaired", "dpo", "kto"]
    assert (page.parent / "comparison.png").stat().st_size > 50_000
    trained = json.loads((folder / "outputs/aot/dominance/report.json").read_text())["runs"]["aot"]
    for side in ("chosen", "rejected"):  # scored again, it is the model that was trained
        change = trained["changes"][side]["change"]["value"]
        assert runs["aot"]["changes"][side]["change"]["value"] == pytest.approx(change, abs=1e-3)
    for run in runs.values():  # as every method was trained to do
        assert run["comparisons"]["rewards"]["after"]["margins"]["p50"]["value"] > 1


def test_two_rounds_on_the_models_own_answers(folder):
    environment = {**ENVIRONMENT, "PATH": f"{AXOLOTL.parent}:{ENVIRONMENT['PATH']}"}
    run = subprocess.run(["sh", str(folder / "rounds.sh")], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    rows = re.findall(r"^(\w+) +([\d.]+)% +[\d.]+% +([\d.]+)%$", run.stdout, re.MULTILINE)
    right = {name: float(rate) for name, rate, _ in rows}
    malformed = {name: float(rate) for name, _, rate in rows}
    assert right["base"] < 60 and right["round1"] > right["base"] + 20 and right["round2"] > 85
    assert malformed["round2"] <= malformed["base"] + 5
    answers = [
        [json.loads(line) for line in (folder / "data" / f"answers{number}.jsonl").open()]
        for number in (1, 2)
    ]
    before, after = (
        sum(sum(row["scores"]) for row in rows) / sum(len(row["scores"]) for row in rows) for rows in answers
    )
    assert after > before + 0.1  # the second round's are the first round's policy's
    assert answers[1][0]["sampled_from"]["adapter"] == str(folder / "outputs" / "round1")


def test_a_mistake_in_the_yaml_is_told_in_the_last_line(folder):
    path = folder / "mistake.yml"
    path.write_text((folder / "aot.yml").read_text() + "\naot_penalty: squared-hinge\n")
    run = subprocess.run(
        [str(AXOLOTL), "train", str(path), "--launcher", "python"],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert run.returncode != 0
    assert run.stderr.strip().splitlines()[-1].endswith("Did you mean 'squared_hinge'?")


def test_an_interrupted_run_leaves_its_adapter(folder):
    path = folder / "long.yml"
    output = folder / "outputs" / "interrupted"
    text = (folder / "aot.yml").read_text().replace("max_steps: 50", "max_steps: 100000")
    path.write_text(text.replace(str(folder / "outputs" / "aot"), str(output)))
    command = [str(AXOLOTL), "train", str(path), "--launcher", "python"]
    process = subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    logged, deadline = 0, time.monotonic() + 120
    for line in process.stdout:
        logged += "'grad_norm'" in line
        if logged == 2:  # the first is of a step at the warm-up's learning rate of zero
            break
        assert time.monotonic() < deadline, "no step was logged"
    assert logged == 2
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    adapter = load_file(output / "adapter_model.safetensors")
    assert any(matrix.abs().sum() > 0 for name, matrix in adapter.items() if "lora_B" in name)
