"""The report of a run of several processes: written once, and of the same answers as one process's."""

import json

import pytest

from tests.end_to_end.engines import FSDP2, zero
from tests.tiny import make_pairs, unpair, with_test_rows


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "evaluation"),
    [
        (("paired", "lora"), True),
        (("unpaired", "full"), False),
        (("paired", "lora"), False),
        (("unpaired", "full"), True),
    ],
    indirect=["config"],
)
def test_two_processes_report_what_one_does(processes, config, evaluation, tmp_path):
    config["aot_report"] = True
    if evaluation:
        pairs = make_pairs(13, seed=9)
        rows = pairs if config["rl"] == "aot" else unpair(pairs)[:-3]
        config = {**with_test_rows(config, tmp_path / "test.jsonl", rows), "eval_steps": 3}
    reports = []
    for world, engine in ((1, {}), (2, {}), (2, zero(2, tmp_path))):
        sizes = {"micro_batch_size": 4 // world, "gradient_accumulation_steps": 4}
        folder = tmp_path / f"{world}-{len(reports)}"
        processes.train({**config, **sizes, **engine}, folder, world)
        output = (folder / "output.txt").read_text()
        assert output.count("Dominance report: ") == 1 and "no dominance report" not in output
        reports.append(json.loads((folder / "out/dominance/report.json").read_text()))
    alone = reports[0]
    kind = "evaluation set" if evaluation else "last effective batches"
    assert alone["source"]["kind"] == kind
    assert bool(alone["answers"]) == evaluation
    for other in reports[1:]:
        assert other["source"] == alone["source"]
        assert other["answers"].keys() == alone["answers"].keys()
        for name, answers in alone["answers"].items():
            assert answers["why_not"] is None and len(answers["samples"]) == 8
            ours, theirs = ([s["before"] for s in r["answers"][name]["samples"]] for r in (alone, other))
            assert theirs == ours  # what is trained differs by rounding
        (ours,), (theirs,) = alone["runs"].values(), other["runs"].values()
        assert theirs["answers"] == ours["answers"]
        for key, states in ours["comparisons"].items():
            for when, state in states.items():
                for end, curve in state["curves"].items():
                    found = theirs["comparisons"][key][when]["curves"][end]["quantiles"]
                    assert found == pytest.approx(curve["quantiles"], abs=1e-3), (key, when, end)


@pytest.mark.slow
@pytest.mark.parametrize("config", [("paired", "lora")], indirect=True)
@pytest.mark.parametrize("engine", ["ZeRO-3", "FSDP"])
def test_engines_that_shard_say_why_there_are_no_answers(processes, config, engine, tmp_path):
    config = with_test_rows(config, tmp_path / "test.jsonl", make_pairs(13, seed=9))
    keys = zero(3, tmp_path) if engine == "ZeRO-3" else FSDP2
    config |= {"aot_report": True, "eval_steps": 4, "max_steps": 4, "micro_batch_size": 2, **keys}
    processes.train(config, tmp_path / "run", 2)
    answers = json.loads((tmp_path / "run/out/dominance/report.json").read_text())["answers"]["aot"]
    assert f"{engine} no process holds all weights" in answers["why_not"] and answers["samples"] == []
    assert "no answers in the report: under" in (tmp_path / "run/output.txt").read_text()
