"""`benchmarks.alignment`: its task and its statistics by hand, and the small run whole."""

import itertools
import json
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.stats import kendalltau

from benchmarks.alignment import tables, task
from benchmarks.alignment.cells import Cell
from benchmarks.alignment.command import HERE, NOT_YET, measured
from benchmarks.alignment.comparisons import STAGES, beta_extremes, losses, methods, shares, sizes
from benchmarks.alignment.figures import FIGURES
from benchmarks.alignment.plan import FULL, SMALL
from benchmarks.alignment.results import NotMeasured, Results
from benchmarks.alignment.searches import grid, refined, size_finalists, size_search
from benchmarks.alignment.tables import Claim, estimate, findings
from benchmarks.alignment.task import Data
from tests.processes import ENVIRONMENT, ROOT


def test_a_reward_is_kendalls_tau_in_other_units():
    for answer in itertools.islice(itertools.permutations("acegi"), 0, 120, 7):
        tau = kendalltau(range(5), [sorted(answer).index(letter) for letter in answer]).statistic
        assert task.reward(answer) == pytest.approx((tau + 1) / 2)
    assert task.reward_of_text(tuple("cabed"), "a b c d e </s>") == 1
    for text in ("a b c d e", "a b c d </s>", "a b c d f </s>", "a b c </s> d", ""):
        assert task.reward_of_text(tuple("cabed"), text) is None


def test_answers_are_half_mallows_half_uniform():
    rng = np.random.default_rng(0)
    drawn = np.array([task.reward(task.draw_answer(tuple("cabed"), rng)) for _ in range(8000)])
    wrong = np.arange(task.LENGTH)  # places that a letter can be put out of order by

    def mean_wrong(dispersion: float) -> float:
        means = []
        for places in wrong + 1:
            mass = np.exp(-dispersion * np.arange(places))
            means.append((np.arange(places) * mass).sum() / mass.sum())
        return sum(means)

    expected = 1 - (mean_wrong(task.CAREFUL) + mean_wrong(0.0)) / 2 / task.PAIRS
    assert drawn.mean() == pytest.approx(expected, abs=4 * drawn.std() / np.sqrt(len(drawn)))


def test_flips_turn_preferences_round_and_change_nothing_else():
    problems = task.split_problems()["train"][:400]
    plain, some = (task.draw_pairs(problems, share, np.random.default_rng(1)) for share in (0.0, 1.0))
    for one, other in zip(plain, some, strict=True):
        assert (one["prompt"], one["chosen"], one["rejected"]) == (
            other["prompt"],
            other["rejected"],
            other["chosen"],
        )
    rewards = [[task.reward(row[side].split()) for side in ("chosen", "rejected")] for row in plain]
    assert 0.75 < np.mean([chosen > rejected for chosen, rejected in rewards]) < 0.9


def test_the_share_of_positives_is_exact(tmp_path):
    path = task.write_data(tmp_path / "x.jsonl", Data(400, positives=0.05), paired=False, seed=3)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(rows) == 400 and sum(row["label"] for row in rows) == 20
    assert len({row["prompt"] for row in rows}) == 400


def test_parts_of_the_problems_do_not_overlap():
    parts = [set(problems) for problems in task.split_problems().values()]
    assert sum(map(len, parts)) == len(set().union(*parts)) == 12 * 11 * 10 * 9 * 8


def test_methods_share_their_data(tmp_path):
    pairs = task.write_data(tmp_path / "pairs.jsonl", Data(30), paired=True, seed=4)
    answers = task.write_data(tmp_path / "answers.jsonl", Data(30), paired=False, seed=4)
    rows = [json.loads(line) for line in pairs.read_text().splitlines()]
    found = [json.loads(line) for line in answers.read_text().splitlines()]
    assert [row["completion"] for row in found if row["label"]] == [row["chosen"] for row in rows]
    assert [row["completion"] for row in found if not row["label"]] == [row["rejected"] for row in rows]


def _measure(results: Results, rows: dict, good: Callable[[Cell], bool]) -> None:
    """Results in which some cells are better on the validation problems, and worse on the others."""
    for cell in results.missing(itertools.chain(*rows.values())):
        is_good = good(cell)
        scores = {"validation": {"reward": 0.5 + is_good}, "test": {"reward": 1.0 - is_good}}
        results.add({"cell": json.loads(cell.name), **scores})


def test_the_best_is_chosen_on_validation_and_scored_with_other_seeds(tmp_path):
    results = Results(tmp_path / "results.jsonl")
    with pytest.raises(NotMeasured):
        methods(FULL, results)
    rows = grid(FULL, results)
    assert len(rows) == 5 * 6 * 4 and all(len(cells) == 5 for cells in rows.values())
    _measure(results, rows, lambda cell: (cell.beta, cell.learning_rate) == (0.3, 6e-4))
    half_way = {rate for (_, beta, rate) in refined(FULL, results) if beta == 0.3}
    assert half_way == {4.24e-4, 6e-4, 8.49e-4}
    _measure(results, refined(FULL, results), lambda cell: False)
    results = Results(tmp_path / "results.jsonl")  # what was written is what is read
    assert not results.missing(itertools.chain(*grid(FULL, results).values()))
    for (method,), cells in methods(FULL, results).items():
        assert {(cell.method, cell.beta, cell.learning_rate) for cell in cells} == {(method, 0.3, 6e-4)}
        assert [cell.seed for cell in cells] == list(range(5, 15))
    for (_, name), cells in beta_extremes(FULL, results).items():
        assert {cell.beta for cell in cells} == {0.01 if name == "lowest" else 0.3}
    chosen = {seed for seeds in (FULL.seeds, FULL.search_seeds) for seed in seeds}
    assert not chosen & {*FULL.main_seeds, *FULL.fresh_seeds}


def test_a_refined_learning_rate_is_taken_where_it_is_better(tmp_path):
    results = Results(tmp_path / "results.jsonl")
    _measure(results, grid(FULL, results), lambda cell: (cell.beta, cell.learning_rate) == (0.3, 6e-4))
    _measure(results, refined(FULL, results), lambda cell: cell.learning_rate == 8.49e-4)
    for cell in itertools.chain(*refined(FULL, results).values()):
        if cell.learning_rate == 6e-4:  # still the best of the grid
            results.add({"cell": json.loads(cell.name), "validation": {"reward": 0.9}, "test": {"reward": 0}})
    assert {cell.learning_rate for cell in itertools.chain(*methods(FULL, results).values())} == {8.49e-4}


def test_every_size_and_scope_has_its_own_learning_rate(tmp_path):
    results = Results(tmp_path / "results.jsonl")
    _measure(results, grid(FULL, results), lambda cell: (cell.beta, cell.learning_rate) == (0.3, 6e-4))
    _measure(results, refined(FULL, results), lambda cell: False)
    factors = {None: 4.0, 1: 0.5, 2: 0.25}
    for (_, micro, factor), cells in size_search(FULL, results).items():
        is_good = factor == min(factors[micro], 2.0)
        _measure(results, {0: cells}, lambda _, is_good=is_good: is_good)
    last = size_finalists(FULL, results)
    tried = {micro: {key[2] for key in last if key[:2] == (16, micro)} for micro in factors}
    assert tried == {None: {2.0, 4.0}, 1: {0.5}, 2: {0.25, 0.125}}
    for (_, _, factor), cells in last.items():  # beyond 2 it is better still, below 0.25 not
        _measure(results, {0: cells}, lambda _, is_better=factor == 4.0: 1 + is_better)
    assert (2, 2) not in sizes(FULL, results)  # would be the whole of the batch
    for (size, micro), cells in sizes(FULL, results).items():
        for cell in cells:
            assert cell.data == Data(FULL.count) and cell.samples == size
            if size != 64:  # which shares cells with the grid
                assert cell.learning_rate == pytest.approx(
                    6e-4 * factors[micro] * (size / 64) ** 0.5, rel=5e-3
                )
            assert cell.micro_batch == (micro or min(size, 128))
            assert cell.keys == ({"aot_scope": "micro_batch"} if micro else {})


def test_a_positive_counts_as_much_as_its_share_is_small(tmp_path):
    results = Results(tmp_path / "results.jsonl")
    for stage in (grid, refined):
        _measure(results, stage(FULL, results), lambda cell: False)
    weights = {
        share: cells[0].keys["kto_desirable_weight"]
        for (share, name), cells in shares(FULL, results).items()
        if name == "kto, balanced"
    }
    assert weights == pytest.approx({0.2: 4, 0.05: 19, 0.01: 99})


def test_estimates_and_outcomes():
    values = np.array([0.1, 0.2, 0.15, 0.3, 0.05])
    found = estimate(values)
    assert found.mean == pytest.approx(0.16) and (found.above, found.count) == (5, 5)
    assert (found.sign, estimate(-values).sign, estimate(values - 0.16).sign) == (1, -1, 0)
    text = findings(
        [Claim("a", values), Claim("b", -values), Claim("c", values - 0.16), Claim("d", -values, False)]
    )
    assert [line.split(" | ")[-1] for line in text.splitlines()[2:]] == [
        "**repeated** |",
        "**the opposite** |",
        "not clear either way |",
        "no: below |",
    ]


@pytest.mark.parametrize(("count", "expected"), [(5, 0.92), (10, 0.95)])
def test_intervals_of_few_seeds_hold_the_mean(count, expected, monkeypatch):
    monkeypatch.setattr(tables, "RESAMPLES", 4000)
    rng = np.random.default_rng(count)
    held = [found.low <= 0 <= found.high for found in map(estimate, rng.normal(size=(600, count)))]
    # to three standard errors; plain percentile intervals hold it in 84% and 91%
    assert np.mean(held) == pytest.approx(expected, abs=3 * np.sqrt(expected * (1 - expected) / 600))


TRAIN_TWO = """
import sys
from pathlib import Path

from benchmarks.alignment.cells import Cell
from benchmarks.alignment.runs import train
from benchmarks.alignment.task import Data, write_base_model

folder = Path(sys.argv[1])
write_base_model(folder / "base", steps=1)
for method in ("dpo", "kto", "aot"):
    for seed in (1, 2):
        into = folder / f"{method}{seed}"
        into.mkdir()
        train(Cell(method, 1.0, 0.0, seed, Data(8), 8, 8), folder / "base", into)
"""


@pytest.mark.slow
def test_a_seed_draws_the_same_lora_matrices_for_all_methods(tmp_path):
    """At a learning rate of 0 they are what they were; differences by seed share them."""
    command = [sys.executable, "-c", TRAIN_TWO, str(tmp_path)]
    run = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]

    def matrices(name: str) -> dict[str, torch.Tensor]:
        found = load_file(tmp_path / name / "out" / "adapter_model.safetensors")
        return {key: value for key, value in found.items() if "lora_A" in key}

    for seed in (1, 2):
        expected = matrices(f"aot{seed}")
        assert expected
        for method in ("dpo", "kto"):
            torch.testing.assert_close(matrices(f"{method}{seed}"), expected, rtol=0, atol=0)
    one, two = matrices("dpo1"), matrices("dpo2")
    assert not any(torch.equal(one[key], two[key]) for key in one)


def test_what_is_committed_follows_from_the_results_beside_it():
    text = (HERE / "RESULTS.md").read_text("utf-8")
    results = Results(HERE / "results.jsonl")
    for stage in STAGES:
        assert not results.missing(itertools.chain(*stage(FULL, results).values())), stage.__name__
    for part in measured(FULL, results).values():
        assert part != NOT_YET
        assert f"\n{part}\n" in text or text.endswith(f"\n{part}")
    for name in FIGURES:
        assert f"({name}.png)" in text and (HERE / f"{name}.png").is_file()


@pytest.mark.slow
def test_the_small_run(tmp_path):
    """The command itself; run again it has nothing left to train."""
    command = [sys.executable, "-m", "benchmarks.alignment", "--small", "--out", str(tmp_path)]
    for _ in range(2):
        run = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr[-3000:]
        lines = (tmp_path / "results.jsonl").read_text().splitlines()
        results = Results(tmp_path / "results.jsonl")
        assert len(lines) == len({json.dumps(json.loads(line)["cell"]) for line in lines})
    text = (tmp_path / "RESULTS.md").read_text()
    assert NOT_YET not in text and "$" not in text
    for name in ("curves", "betas", "sizes", "shares", "flips"):
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000
    for cells in losses(SMALL, results).values():
        assert not results.missing(cells)
    (usual,) = {cell.learning_rate for cell in methods(SMALL, results)["aot",]}
    assert usual in SMALL.learning_rates
