"""`benchmarks.alignment`: its searches, choices and statistics by hand, and the small run whole."""

import itertools
import json
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.alignment import choices
from benchmarks.alignment.batched.records import read
from benchmarks.alignment.batched.search import MORE, SEEDS
from benchmarks.alignment.batched.search import choices as choices_of_search
from benchmarks.alignment.cells import Cell
from benchmarks.alignment.choices import Best, Place, chosen, read_choices, write_choices
from benchmarks.alignment.command import HERE, NOT_YET, measured
from benchmarks.alignment.comparisons import (
    STAGES,
    beta_extremes,
    contenders,
    losses,
    methods,
    shares,
    sizes,
)
from benchmarks.alignment.figures import FIGURES
from benchmarks.alignment.plan import FULL, SMALL
from benchmarks.alignment.preferences import Data
from benchmarks.alignment.results import NotMeasured, Results
from benchmarks.alignment.searched import PATH
from benchmarks.alignment.searches import grid, refined, size_finalists, size_search
from benchmarks.alignment.settings import SETTINGS
from tests.processes import ENVIRONMENT, ROOT


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


# --- Settings, each as it was chosen ----------------------------------------------------------------


def test_choices_are_read_as_they_were_written(tmp_path):
    path = tmp_path / "choices.json"
    some = {
        Place("sorting", "dpo"): Best(1.0, 6e-4),
        Place("covering", "aot", 0.2, 4): Best(0.3, 1.7e-3),
        Place("sorting", "kto, balanced", positives=0.05): Best(3.0, 3e-4),
    }
    write_choices(some, path)
    assert read_choices(path) == some
    assert chosen(Place("covering", "aot", 0.2, 4), path) == Best(0.3, 1.7e-3)
    with pytest.raises(NotMeasured, match=r"no choice in choices.json for .*task='sorting', setting='aot'"):
        chosen(Place("sorting", "aot"), path)
    twice = tmp_path / "twice.json"
    twice.write_text(json.dumps(2 * json.loads(path.read_text())))
    with pytest.raises(ValueError, match="is there twice"):
        read_choices(twice)


@pytest.fixture
def all_chosen(monkeypatch):
    """A different choice for each place."""

    class Every(dict):
        def __missing__(self, place: Place) -> Best:
            return self.setdefault(place, Best(float(len(self) + 1), 1e-3))

        def __contains__(self, place: object) -> bool:
            return True

    every = Every()
    monkeypatch.setattr(choices, "read_choices", lambda path: every)
    return every


def test_settings_are_trained_as_they_were_chosen(all_chosen):
    found = contenders(FULL, None)
    assert len(found) == 2 * 2 * len(SETTINGS)
    expected = {Place(task, name, flipped): cells for (task, flipped, name), cells in found.items()}
    assert expected.keys() == all_chosen.keys()
    for place, cells in expected.items():
        for cell in cells:
            assert cell.data == Data(2048, None, place.flipped, place.task)
            assert (cell.beta, cell.epochs) == (all_chosen[place].beta, 1)
            assert cell.samples == (64 if cell.method in ("dpo", "ipo", "aot") else 128)
            setting = SETTINGS[place.setting]
            assert (cell.method, cell.keys) == (setting.method, setting.keys)
        seeds = [cell.seed for cell in cells]
        assert seeds == list(range(5, 15)) and not {*SEEDS, *MORE} & {*seeds}


def test_a_small_plan_has_some_of_the_settings(all_chosen):
    assert {name for *_, name in contenders(SMALL, None)} == set(SMALL.settings)
    assert {key[:2] for key in contenders(SMALL, None)} == set(SMALL.places)


# --- Runs -------------------------------------------------------------------------------------------


TRAIN_TWO = """
import sys
from pathlib import Path

from benchmarks.alignment.base_model import write_base_model
from benchmarks.alignment.cells import Cell
from benchmarks.alignment.preferences import Data
from benchmarks.alignment.runs import train
from benchmarks.alignment.tasks import TASKS

folder = Path(sys.argv[1])
write_base_model(TASKS["sorting"], folder / "base", steps=1)
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


needs_raw_results = pytest.mark.skipif(
    (ROOT / "PKG-INFO").is_file(), reason="the source distribution leaves the raw results out"
)


@needs_raw_results
def test_choices_are_those_of_the_search_beside_them():
    assert read_choices() == choices_of_search(read(PATH))


@needs_raw_results
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
    for name in FIGURES:
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000
    for stage in STAGES:
        assert not results.missing(itertools.chain(*stage(SMALL, results).values()))
    for cells in losses(SMALL, results).values():
        assert not results.missing(cells)
    (usual,) = {cell.learning_rate for cell in methods(SMALL, results)["aot",]}
    assert usual in SMALL.learning_rates
