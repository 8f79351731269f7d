"""The trainers alone: the same tokens, the same work, and the table of what it took."""

import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.speed import cases, compare_steps, steps, tokens
from benchmarks.speed.command import main
from benchmarks.speed.errors import UsageError
from benchmarks.speed.memory import limit
from benchmarks.speed.models import load_model
from benchmarks.speed.processes import in_its_own_process
from tests.speed.conftest import TINY
from tests.speed.output import printed_results

SMALL = ["--cases", "fixed", "--lengths", "32", "--vocabulary", "1000", "--micro-batch", "2", "--steps", "1"]


def test_lengths_without_data_are_like_those_of_real_pairs():
    """Medians of prompt, chosen and rejected, as `benchmarks.speed.tokens` says."""
    lengths = tokens.real_lengths(None, 2_000)
    for column, median in zip(zip(*lengths, strict=True), (30, 270, 250), strict=True):
        assert statistics.median(column) == pytest.approx(median, rel=0.1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_limit_of_a_gpus_memory_needs_one():
    with pytest.raises(UsageError, match="--memory-limit is of a GPU"):
        limit(79)


def test_ratios_are_to_the_first_trainer():
    first = {"case": "c", "trainer": "TRL aot", "seconds": 2.0, "tokens_per_second": 9.0, "bytes": 4 * 2**20}
    second = {**first, "trainer": "ours", "seconds": 0.5, "bytes": 2**20, "peak_bytes": 3 * 2**20}
    table = compare_steps.table([first, second, {"case": "c", "trainer": "x", "failed": "no memory"}])
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    assert cells[0] == ["c", "TRL aot", "2.00", "9", "4", "", "1.00", "1.00"]
    assert cells[1] == ["c", "ours", "0.50", "9", "1", "3", "0.25", "0.25"]
    assert cells[2] == ["c", "x", "no memory", "", "", "", "", ""]


def test_contenders_in_one_process_do_the_same_work(capsys, tmp_path):
    path = tmp_path / "figures.json"
    options = [*SMALL, "--one-process", "--checkpointing", "--json", str(path)]
    main([*options, "--contenders", cases.TRL, cases.OURS])
    printed = capsys.readouterr().out
    trls, ours = printed_results(printed)
    assert json.loads(path.read_text()) == [trls, ours]
    for key in ("loss", "grad_norm"):
        assert ours[key] == pytest.approx(trls[key], rel=1e-4)
    assert "bytes" not in ours  # of a process that has trained before
    assert "| fixed, micro-batch 2 | ours | " in printed


def test_a_model_from_a_folder_is_what_is_trained(tiny_model, job):
    ids = torch.tensor([[5, 6, 7, 8]])
    random = steps.measure(cases.OURS, TINY, json.loads(job(cases.OURS).tokens.read_text()))
    case = cases.Case(base_model=str(tiny_model), lengths="32", micro_batch=2, steps=1, vocabulary=200)
    loaded = job(cases.OURS, case).run()
    assert loaded["grad_norm"] != pytest.approx(random["grad_norm"], rel=1e-2)
    model = load_model(case)
    expected = AutoModelForCausalLM.from_pretrained(tiny_model)
    torch.testing.assert_close(model(ids).logits, expected(ids).logits)
    four_bits = load_model(cases.Case(base_model=str(tiny_model), adapter="qlora"))
    assert four_bits.is_loaded_in_4bit


@pytest.mark.slow
def test_another_interpreters_trl_trains_the_same_tokens(capsys):
    """Here the same interpreter by another name, without this one's modules but for the checkout."""
    other = str(Path(sys.executable).with_name("python3"))
    main([*SMALL, "--contenders", cases.TRL, cases.PEER, "--peer-python", other])
    here, there = printed_results(capsys.readouterr().out)
    assert there["loss"] == here["loss"] and there["grad_norm"] == pytest.approx(here["grad_norm"], rel=1e-5)


@pytest.mark.slow
def test_what_trls_trainer_needs_is_there_without_axolotl():
    script = (
        "import sys\nimport benchmarks.speed.job, benchmarks.speed.steps\n"
        "assert not {'axolotl', 'axolotl_aot'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[2])


@pytest.mark.slow
@pytest.mark.timing
def test_a_step_takes_less_time_and_memory_than_trls(job):
    # 0.3 of the time and 0.2 of the memory were measured; only a busy machine can make that 1, and not twice
    case = cases.Case(lengths="128", micro_batch=2, steps=3)
    for _ in range(2):
        trls, ours = (in_its_own_process(job(name, case)) for name in (cases.TRL, cases.OURS))
        assert "failed" not in trls and "failed" not in ours, (trls, ours)
        for key in ("loss", "grad_norm"):  # of the same work
            assert ours[key] == pytest.approx(trls[key], rel=1e-4)
        assert ours["bytes"] < trls["bytes"]
        if ours["seconds"] < trls["seconds"]:
            return
    raise AssertionError(f"slower than TRL's: {ours}, {trls}")
