"""YAMLs, rows and runs of the comparison by axolotl's command."""

import json

import pytest
import yaml

from benchmarks.speed.command import main
from benchmarks.speed.command_line import compare as cli
from benchmarks.speed.command_line import yamls
from benchmarks.speed.command_line.pairs import write_pairs
from benchmarks.speed.command_line.runs import train
from benchmarks.speed.errors import UsageError
from tests.speed.output import printed_results
from tests.tiny import write_jsonl


def test_yamls_differ_in_what_is_compared_only(tmp_path):
    run = yamls.Run(
        "model",
        adapter="qlora",
        more=yamls.read_settings(["lora_r=8", "plugins=[other.Plugin]"]),
        ours=yamls.read_settings(["aot_penalty=sigmoid", "lora_r=4", "plugins=[ours.Plugin]"]),
    )
    keys = {name: yamls.keys_of(name, run, tmp_path / "rows", tmp_path) for name in yamls.CONTENDERS}
    assert keys["trl"]["dpo_loss_type"] == ["aot"] and keys["trl"]["rl"] == "dpo"
    assert keys["trl"]["plugins"] == ["other.Plugin", yamls.WATCH]
    assert keys["ours"]["plugins"] == ["axolotl_aot.AOTPlugin", "ours.Plugin", "other.Plugin", yamls.WATCH]
    assert keys["ours"]["aot_penalty"] == "sigmoid" and keys["ours"]["lora_r"] == 8
    differing = {
        key for key in {**keys["trl"], **keys["ours"]} if keys["trl"].get(key) != keys["ours"].get(key)
    }
    own = {"rl", "dpo_loss_type", "remove_unused_columns", "datasets", "plugins", "aot_report", "aot_penalty"}
    assert differing == own
    known = {**keys["ours"], "precompute_ref_log_probs": True}
    assert keys["ours, reference known"] == yaml.safe_load(yaml.safe_dump(known))


def test_rows_of_the_command_line_fit_and_suffice(tiny_model, tmp_path):
    def pair(answer: str) -> dict:
        return {"messages": [{"role": "user", "content": "red?"}], "chosen": answer, "rejected": "dog"}

    data = write_jsonl(
        tmp_path / "data.jsonl", [pair("cat"), pair("dog"), pair("blue " * 400), pair("one cat")]
    )
    run = yamls.Run(str(tiny_model), micro_batch=1, accumulation=1, steps=1, sequence_len=100)
    rows = [json.loads(line) for line in write_pairs(tmp_path / "rows", run, data).read_text().splitlines()]
    assert {row["chosen"]["content"] for row in rows} == {"cat", "one cat"}
    with pytest.raises(UsageError, match="2 of its pairs have at most --sequence-len 100 tokens, and 3"):
        write_pairs(tmp_path / "rows", yamls.Run(**{**vars(run), "steps": 2}), data)
    assert (
        len(
            write_pairs(tmp_path / "rows", yamls.Run(**{**vars(run), "sequence_len": 512}), None)
            .open()
            .readlines()
        )
        == 2
    )


def test_means_of_repeated_runs_against_the_first_contender():
    def run(seconds: float) -> dict:
        figures = {"train_runtime": seconds, "seconds": seconds / 4 + 1, "command_seconds": 30 + seconds}
        return {**figures, "bytes": (seconds + 6) * 2**20, "peak_bytes": 2**30}

    table = cli.table(
        {"trl": [run(10), run(14)], "ours": [run(3), {"failed": "no"}], "x": [{"failed": "no memory"}]}
    )
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    assert rows[0] == ["trl", "12.0 (10.0 to 14.0)", "4.00", "42", "18", "1,024", "1.00", "1.00", "1.00"]
    assert rows[1] == ["ours", "3.0", "1.75", "33", "9", "1,024", "0.25", "0.44", "0.50"]
    assert rows[2] == ["x", "no memory", *[""] * 7]


@pytest.mark.slow
def test_the_command_line_is_compared(capsys):
    arguments = (
        "--cli --vocabulary 1000 --sequence-len 128 --micro-batch 2 --accumulation 2 --steps 1 --repeats 1"
    )
    main([*arguments.split(), "--set", "learning_rate=1e-3", "--set-ours", "aot_scope=micro_batch"])
    printed = capsys.readouterr().out
    results = {result["run"]: result for result in printed_results(printed)}
    assert list(results) == list(yamls.DEFAULT)
    for result in results.values():
        assert result["steps"] == 2
        assert 0 < result["seconds"] < result["train_runtime"] < result["command_seconds"]
        assert 0 < result["bytes"] < result["peak_bytes"]
        assert result["loss"] == pytest.approx(0.6931, abs=1e-3)
    assert results["ours"]["grad_norm"] == pytest.approx(
        results["ours, reference known"]["grad_norm"], rel=1e-3
    )
    assert "| ours, reference known | " in printed


@pytest.mark.slow
def test_a_run_that_fails_is_a_result(tmp_path, tiny_model):
    run = yamls.Run(str(tiny_model), ours={"aot_penalty": "none"})
    data = write_jsonl(tmp_path / "rows.jsonl", [])
    found = train(yamls.keys_of("ours", run, data, tmp_path), tmp_path)
    assert "aot_penalty" in found["failed"]
