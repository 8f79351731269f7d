"""`benchmarks.alignment`: its task and its statistics by hand, and the small run whole."""

import itertools
import json
import subprocess
import sys

import numpy as np
import pytest
from scipy.stats import kendalltau

from benchmarks.alignment import task
from benchmarks.alignment.plan import FULL, SMALL, grid, losses, methods, sizes
from benchmarks.alignment.results import Results
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


def test_the_best_is_chosen_on_validation_and_scored_with_other_seeds(tmp_path):
    results = Results(tmp_path / "results.jsonl")
    for cells in grid(FULL, results).values():
        for cell in cells:  # on the test problems all the others are better
            good = (cell.beta, cell.learning_rate) == (0.3, 6e-4)
            scores = {"validation": {"reward": 0.5 + good}, "test": {"reward": 1.0 - good}}
            results.add({"cell": json.loads(cell.name), **scores})
    again = Results(tmp_path / "results.jsonl")
    assert not again.missing(cell for cells in grid(FULL, again).values() for cell in cells)
    for cells in methods(FULL, again).values():
        assert {(cell.beta, cell.learning_rate) for cell in cells} == {(0.3, 6e-4)}
        assert {cell.seed for cell in cells} == set(FULL.fresh_seeds) and not set(FULL.fresh_seeds) & set(
            FULL.seeds
        )
    for (size, scope), cells in sizes(FULL, again).items():
        for cell in cells:
            assert cell.data == Data(FULL.count) and cell.samples == size
            assert cell.learning_rate == pytest.approx(6e-4 * (size / 64) ** 0.5)
            assert cell.micro_batch == (min(size, 128) if scope == "effective_batch" else int(scope[-1]))


def test_estimates_and_outcomes():
    values = np.array([0.1, 0.2, 0.15, 0.3, 0.05])
    found = estimate(values)
    resampled = np.random.default_rng(1).choice(values, (100_000, 5)).mean(1)
    assert found.mean == pytest.approx(0.16) and (found.above, found.count) == (5, 5)
    assert (found.low, found.high) == pytest.approx(np.percentile(resampled, [2.5, 97.5]), abs=0.01)
    assert (found.sign, estimate(-values).sign, estimate(values - 0.16).sign) == (1, -1, 0)
    text = findings(
        [Claim("a", values), Claim("b", -values), Claim("c", values - 0.16), Claim("d", -values, False)]
    )
    assert [line.split(" | ")[-1] for line in text.splitlines()[2:]] == [
        "**repeated** |",
        "**the opposite** |",
        "not clear either way |",
        "no: the opposite |",
    ]


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
    for title in ("1. Methods", "4. The effective batch", "7. Flipped preferences"):
        assert f"## {title}" in text
    for name in ("curves", "betas", "sizes", "shares", "flips"):
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000
    for cells in losses(SMALL, results).values():
        assert not results.missing(cells)
    (usual,) = {cell.learning_rate for cell in methods(SMALL, results)["aot",]}
    assert usual in SMALL.learning_rates
