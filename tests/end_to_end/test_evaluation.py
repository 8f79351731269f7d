"""`axolotl evaluate`, and evaluation while training: one number of the whole set, whoever computes it."""

import csv

import pytest

from tests.end_to_end.engines import BOTH, FSDP2, KINDS, zero
from tests.tiny import make_pairs, unpair, with_test_rows


@pytest.fixture
def with_test_set(config, tmp_path):
    """23 pairs or 43 answers, which divide by none of the batch sizes."""
    pairs = make_pairs(23, seed=9)
    rows = pairs if config["rl"] == "aot" else unpair(pairs)[:-3]
    return with_test_rows(config, tmp_path / "test.jsonl", rows)


def evaluate(processes, config, folder, world, batch_size) -> dict[str, float]:
    run = processes.run("evaluate", {**config, "eval_batch_size": batch_size}, folder, world)
    assert set(run.codes) == {0}, run.output
    with (folder / "out/eval_summary.csv").open() as file:
        rows = {row["metric"]: row["validation"] for row in csv.DictReader(file)}
    groups = ("loss", "dominance", "rewards", "logps")
    return {name: float(value) for name, value in rows.items() if name.split("/")[0] in groups}


SIZES = ((1, 1), (1, 3), (1, 8), (2, 1), (2, 3), (2, 8))  # processes, batch size


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "sizes"),
    [
        (("unpaired", "lora"), SIZES),
        (("paired", "full"), SIZES),
    ],
    indirect=["config"],
)
def test_any_batch_size_and_any_number_of_processes(processes, with_test_set, sizes, tmp_path):
    folder = tmp_path / "run"
    (log,) = processes.train({**with_test_set, "eval_steps": 8}, folder).logs
    last = [entry for entry in log if "eval_loss" in entry][-1]
    results = {
        (world, batch_size): evaluate(processes, with_test_set, folder, world, batch_size)
        for world, batch_size in sizes
    }
    first = results[1, 1]
    assert {"loss", "dominance/violation", "rewards/chosen", "logps/rejected"} <= set(first)
    assert first["dominance/violation"] > 1e-3  # of a model with itself it would be 0
    for name, value in first.items():  # it is the trained model, and the reference that it was trained with
        assert value == pytest.approx(last[f"eval_{name}"], rel=1e-5, abs=1e-5), name
    for case, result in results.items():  # margins are of single log-probabilities of about 50 nats
        assert result == pytest.approx(first, rel=1e-5, abs=1e-5), case


@pytest.mark.slow
@pytest.mark.parametrize("config", BOTH, indirect=True, ids="-".join)
def test_two_processes_repeat_to_the_last_digit_with_or_without_evaluations(
    processes, with_test_set, tmp_path
):
    more = {"micro_batch_size": 4, "gradient_accumulation_steps": 2}
    runs = [
        processes.train({**with_test_set, **more, **evaluation}, tmp_path / str(number), 2)
        for number, evaluation in enumerate([{"eval_strategy": "no"}, {"eval_steps": 1}])
    ]
    assert sum("eval_loss" in entry for entry in runs[1].logs[0]) == 9  # one before the first step
    assert runs[0].steps == runs[1].steps


@pytest.mark.slow
@pytest.mark.parametrize("config", KINDS[1:2], indirect=True, ids="-".join)
def test_engines_that_cannot_evaluate_say_so(processes, with_test_set, tmp_path):
    processes.train({**with_test_set, "max_steps": 1, "eval_strategy": "no"}, tmp_path / "run")
    for keys, message in (
        (FSDP2, "`fsdp_config` in an evaluation without training"),
        (zero(2, tmp_path), "`deepspeed` in an evaluation without training"),
    ):
        run = processes.run("evaluate", {**with_test_set, **keys}, tmp_path / "run", 2)
        assert set(run.codes) - {0} and message in run.output
    run = processes.run("evaluate", {**with_test_set, **zero(3, tmp_path)}, tmp_path / "run", 2)
    assert set(run.codes) == {0}, run.output
