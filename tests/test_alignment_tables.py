"""`benchmarks.alignment`: estimates, and the tables of settings and of the search, by hand."""

import json
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.alignment import choices, estimates, figures, search_tables, setting_tables
from benchmarks.alignment.batched.kinds import VARIANTS
from benchmarks.alignment.batched.records import append, read
from benchmarks.alignment.batched.search import FRESH, MORE, SEEDS, Condition
from benchmarks.alignment.batched.training import Run
from benchmarks.alignment.choices import Best, Place
from benchmarks.alignment.comparisons import base, confirmed, contenders
from benchmarks.alignment.estimates import estimate
from benchmarks.alignment.findings import Claim, findings
from benchmarks.alignment.plan import FULL
from benchmarks.alignment.preferences import Data
from benchmarks.alignment.results import NotMeasured, Results
from benchmarks.alignment.search_tables import Width, width
from benchmarks.alignment.searched import EDGE, ELSEWHERE, Curve, Searched

DOUBTED, ANCHOR = "aot_unpaired, doubted", "aot_unpaired, anchor"
CLEAN = Condition(Data(2048, task="covering"))
RATES = (6e-4, 1.2e-3, 2.4e-3)
PLAN = replace(FULL, places=(("covering", 0.0),), settings=("dpo", "kto", ANCHOR, DOUBTED))


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
    monkeypatch.setattr(estimates, "RESAMPLES", 4000)
    rng = np.random.default_rng(count)
    held = [found.low <= 0 <= found.high for found in map(estimate, rng.normal(size=(600, count)))]
    # to three standard errors; plain percentile intervals hold it in 84% and 91%
    assert np.mean(held) == pytest.approx(expected, abs=3 * np.sqrt(expected * (1 - expected) / 600))


# --- The search -------------------------------------------------------------------------------------


def _runs(kind: str, beta: float, rate: float, seeds: range, reward: float) -> list[dict]:
    """Rewards that differ by seed, evenly around their mean."""
    found = []
    for number, seed in enumerate(seeds):
        scores = dict.fromkeys(("worst", "malformed", "length", "idle"), 0.0)
        scores["reward"] = reward + 0.01 * (number - (len(seeds) - 1) / 2)
        parts = ("validation", "test") if seed in FRESH else ("validation",)
        run = Run(kind, beta, rate, seed, CLEAN.data)
        found.append({"run": run, **dict.fromkeys(parts, scores)})
    return found


@pytest.fixture
def search(tmp_path, monkeypatch):
    """Of two settings and a variant, as the file gives it back."""
    results = []
    for kind, rewards in (("kto", (0.7, 0.9, 0.8)), (ANCHOR, (0.74, 0.86, 0.91))):
        for beta in (0.3, 1.0, 3.0):
            for rate, reward in zip(RATES, rewards, strict=True):
                results += _runs(kind, beta, rate, SEEDS, reward - 0.1 * (beta != 1))
        results += _runs(kind, 0.3, 2.4e-3, FRESH, 0.5)  # not at the best rl_beta
        for rate, reward in zip(RATES, rewards, strict=True):
            results += _runs(kind, 1.0, rate, FRESH, reward - 0.02)
    margin = "anchor, margin 0.5 nats"
    for rate, reward in zip(RATES, (0.95, 0.9, 0.7), strict=True):  # three lucky seeds, and five more
        results += _runs(margin, 1.0, rate, SEEDS, reward)
    results += _runs(margin, 1.0, 1.2e-3, MORE, 0.9) + _runs(margin, 1.0, 1.2e-3, FRESH, 0.92)
    results += _runs("anchor, margin 1 nats", 1.0, 1.2e-3, SEEDS, 0.6)
    append(tmp_path / "search.csv", results)
    found = Searched(read(tmp_path / "search.csv"))
    for module in (search_tables, setting_tables, figures):
        monkeypatch.setattr(module, "read_search", lambda: found)
    return found


def test_the_best_point_is_one_of_those_with_most_seeds(search):
    assert search.chosen("kto", CLEAN) == (Best(1.0, 1.2e-3), pytest.approx(0.9), 3)
    assert search.chosen("anchor, margin 0.5 nats", CLEAN) == (Best(1.0, 1.2e-3), pytest.approx(0.9), 8)
    with pytest.raises(NotMeasured, match="no run of dpo"):
        search.chosen("dpo", CLEAN)
    values = search.test("kto", CLEAN, Best(1.0, 1.2e-3))
    np.testing.assert_allclose(values, 0.88 + 0.01 * (np.arange(10) - 4.5))
    with pytest.raises(NotMeasured, match="not all fresh seeds of kto"):
        search.test("kto", CLEAN, Best(3.0, 1.2e-3))


def test_choices_at_the_edge_of_what_was_tried_are_marked(search):
    place = Place("covering", "kto")
    assert search.marks(place, Best(1.0, 1.2e-3)) == ("", "")
    assert search.marks(place, Best(0.3, 1.2e-3)) == (EDGE, "")
    assert search.marks(place, Best(1.0, 2.4e-3)) == ("", EDGE)
    assert search.marks(place, Best(1.0, 5e-4)) == (ELSEWHERE, ELSEWHERE)
    for other in (replace(place, flipped=0.2), replace(place, epochs=4), replace(place, setting="dpo")):
        assert search.marks(other, Best(1.0, 1.2e-3)) == (ELSEWHERE, ELSEWHERE)


@pytest.mark.parametrize(
    ("means", "level", "expected"),
    [
        ((0.0, 1.0, 0.0), 0.5, Width(10.0, False)),  # half a decade to each side
        ((0.0, 1.0, 0.5), 0.75, Width(10**0.75, False)),
        ((0.9, 1.0, 0.0), 0.5, Width(10**1.5, True)),  # good as far down as was measured
        ((0.9, 1.0, 0.8), 0.5, Width(100.0, True)),
        ((1.0, 0.0, 0.9), 0.5, Width(10**0.5, True)),  # another good one, apart, does not count
        ((0.0, 1.0, 0.0), 1.1, None),
    ],
)
def test_a_range_of_learning_rates_ends_where_the_reward_does(means, level, expected):
    curve = Curve(np.array([1.0, 10.0, 100.0]), np.array(means)[:, None] + np.array([-0.1, 0.1]))
    found = width(curve, level)
    assert found == (expected and (pytest.approx(expected.ratio), expected.open))
    assert str(Width(3.14, True)) == "≥ 3.1" and str(Width(3.14, False)) == "3.1"


def test_widths_are_of_ones_own_best_and_of_the_best_of_all(search):
    curve = search.curve("kto", CLEAN)
    np.testing.assert_allclose(curve.rates, RATES)
    np.testing.assert_allclose(curve.rewards.mean(axis=1), (0.68, 0.88, 0.78))
    # kto loses 20 points downwards and 10 upwards, and lies a point below anchor, which loses 5 downwards
    kto, within_anchor = 2 ** (0.02 / 0.2 + 0.02 / 0.1), 2 ** (0.01 / 0.2 + 0.01 / 0.1)
    anchor = 2 ** (0.02 / 0.05)
    line = search_tables.rates(FULL, None).table.splitlines()
    assert line[0] == (
        "| setting | sorting, clean | sorting, 20% flipped | covering, clean | covering, 20% flipped |"
    )
    assert line[2:] == [
        f"| `kto` |  |  | {kto:.1f} / {within_anchor:.1f} |  |",
        f"| `{ANCHOR}` |  |  | ≥ {anchor:.1f} / ≥ {anchor:.1f} |  |",
    ]
    figure = figures.rates(FULL, None)
    assert [len(axis.lines) for axis in figure.axes] == [0, 0, 2, 0]


def test_four_epochs_stand_with_their_scores_and_differences(search):
    where = Condition(Data(2048, task="covering"), 4)
    for kind, rate, reward in (("kto", 6e-4, 0.9), ("dpo", 3e-4, 0.8)):
        search.tried |= {(kind, *where, 1.0, rate): [reward], (kind, *where, 1.0, 1.5e-4): [0.1]}
        scores = {"reward": reward, "worst": 0.5, "malformed": 0.01, "length": 4.5, "idle": 0.25}
        search.fresh[(kind, *where, 1.0, rate)] = dict.fromkeys(range(5, 10), scores)
    search.tried[(ANCHOR, *where, 1.0, 6e-4)] = [0.95]  # without fresh seeds
    found = setting_tables.longer(FULL, None)
    assert found.table.splitlines()[0] == "Covering:"
    rest = "50.0 [50.0, 50.0] | 1.0 [1.0, 1.0] | 4.50 | 0.25 |"
    assert found.table.splitlines()[4:] == [
        rf"| `dpo` (s) | 1\* | 0.0003\* | 80.0 [80.0, 80.0] | {rest}",
        rf"| `kto` (s) | 1\* | 0.0006\* | 90.0 [90.0, 90.0] | {rest}",
    ]
    assert len(found.findings.splitlines()) == 2  # neither of ours is there


def test_variants_stand_with_their_seeds_and_differences(search):
    found = search_tables.variants(FULL, None)
    head, _, *lines = found.table.splitlines()
    assert head == "| loss | covering, clean |"
    assert "| `kto` | 90.0 (3) |" in lines and "| anchor, margin 0.5 nats | 90.0 (8) |" in lines
    assert {line for line in lines if "margin" in line and not line.endswith("|  |")} == {
        "| anchor, margin 0.5 nats | 90.0 (8) |",
        "| anchor, margin 1 nats | 60.0 (3) |",
    }
    assert all(any(line.startswith(f"| {kind} |") for line in lines) for kind in VARIANTS)
    head, _, line = found.findings.splitlines()
    assert head == f"| loss | covering, clean: above `kto` | covering, clean: above `{ANCHOR}` |"
    # the same spread over the seeds: 92 - 88, 92 - 89
    assert line == "| anchor, margin 0.5 nats | +4.0 [+4.0, +4.0] | +3.0 [+3.0, +3.0] |"


# --- Settings ---------------------------------------------------------------------------------------


@pytest.fixture
def results(tmp_path, monkeypatch):
    """Of the plan's settings at one choice each, by `axolotl train`."""
    rates = {"dpo": 6e-4, "kto": 1.2e-3, ANCHOR: 2.4e-3, DOUBTED: 1e-3}
    at = {Place("covering", name): Best(1.0, rate) for name, rate in rates.items()}
    monkeypatch.setattr(choices, "read_choices", lambda path: at)
    found = Results(tmp_path / "results.jsonl")
    rewards = {"kto": 0.9, "dpo": 0.8, ANCHOR: 0.9, DOUBTED: 0.93}
    cells = {name: row for (*_, name), row in contenders(PLAN, None).items()} | {
        "base": base(PLAN, None)["covering",]
    }
    for name, row in cells.items():
        for number, cell in enumerate(row):
            reward = rewards.get(name, 0.5) + 0.001 * (number - 4.5)
            others = {"worst": 0.25, "malformed": 0.01, "length": 4.5, "idle": 0.25, "kl": 2}
            found.add({"cell": json.loads(cell.name), "test": {"reward": reward, **others}})
    return found


def test_settings_stand_with_their_choice_and_scores(search, results):
    found = setting_tables.settings(PLAN, results)
    title, _, head, _, *lines = found.table.splitlines()
    assert title == "Covering, clean:"
    assert head.split(" | ")[-2:] == ["length", "idle words |"]
    rest = " | 25.0 [25.0, 25.0] | 1.0 [1.0, 1.0] | 4.50 | 0.25 |"
    assert [line.removesuffix(rest).rpartition(" | ")[0] for line in lines] == [
        "| base |  | ",
        "| `dpo` | 1† | 0.0006†",
        "| `kto` | 1 | 0.0012",
        rf"| `{ANCHOR}` | 1 | 0.0024\*",
        f"| `{DOUBTED}` | 1† | 0.001†",
    ]
    assert all(line.endswith(rest) for line in lines)
    assert [line.split(" | ")[-1 - rest.count(" | ")].split()[0] for line in lines] == [
        "50.0",
        "80.0",
        "90.0",
        "90.0",
        "93.0",
    ]


def test_what_was_picked_last_is_compared_on_unseen_seeds(search, results):
    with pytest.raises(NotMeasured):
        setting_tables.confirmed(PLAN, results)
    rows = {name: row for (*_, name), row in confirmed(PLAN, None).items()}
    assert list(rows) == ["kto", DOUBTED]
    for reward, row in zip((0.9, 0.85), rows.values(), strict=True):
        assert [cell.seed for cell in row] == list(range(25, 35))
        for cell in row:
            others = {"worst": 0.25, "malformed": 0.01, "length": 4.5, "idle": 0.25}
            results.add({"cell": json.loads(cell.name), "test": {"reward": reward, **others}})
    found = setting_tables.confirmed(PLAN, results)
    assert [line.split(" | ")[0] for line in found.table.splitlines()[4:]] == [
        "| `kto`",
        f"| `{DOUBTED}`",
    ]
    assert [line.split(" | ")[1:] for line in found.findings.splitlines()[2:]] == [
        ["-5.0 [-5.0, -5.0]", "0 of 10", "no: below |"],
    ]


def test_a_setting_that_axolotl_has_not_trained_is_shown_from_the_search(search, results):
    (cell, *_) = contenders(PLAN, None)["covering", 0.0, ANCHOR]
    results._found = {name: result for name, result in results._found.items() if name != cell.name}
    lines = setting_tables.settings(PLAN, results).table.splitlines()
    (line,) = (line for line in lines if "(s)" in line)
    assert line.startswith(rf"| `{ANCHOR}` (s) | 1 | 0.0024\* | 89.0 [")  # 91, less 2 with fresh seeds
    row = setting_tables.compared(PLAN, results)[Place("covering", "")][ANCHOR]
    np.testing.assert_allclose(row.values("reward"), search.test(ANCHOR, CLEAN, Best(1.0, 2.4e-3)))


def test_few_positives_are_those_of_the_search(search):
    with pytest.raises(NotMeasured, match="no fresh seeds"):
        setting_tables.few(FULL, None)
    with pytest.raises(NotMeasured, match="no fresh seeds"):
        setting_tables.longer(FULL, None)
    found = setting_tables.searched([Place("covering", "")], ["kto", "dpo", ANCHOR])
    ((place, rows),) = found.items()
    assert place == Place("covering", "") and list(rows) == ["kto", ANCHOR]
    # of five seeds only, the first ones
    np.testing.assert_allclose(rows["kto"].values("reward"), 0.88 + 0.01 * (np.arange(5) - 4.5))


def test_settings_are_compared_by_what_is_there(search, results):
    lines = setting_tables.settings(PLAN, results).findings.splitlines()[2:]
    rows = [line.removeprefix("| covering, clean: ").split(" | ") for line in lines]
    found = {words: rest for words, *rest in rows}
    assert found == {
        f"`{DOUBTED}` above `dpo`": ["+13.0 [+13.0, +13.0]", "10 of 10", "yes |"],
        f"`{DOUBTED}` above `kto`": ["+3.0 [+3.0, +3.0]", "10 of 10", "yes |"],
        f"`{DOUBTED}` above `{ANCHOR}`": ["+3.0 [+3.0, +3.0]", "10 of 10", "yes |"],
        f"`{ANCHOR}` above `kto`": ["+0.0 [+0.0, +0.0]", "0 of 10", "not clear either way |"],
        f"`{ANCHOR}` above `dpo`": ["+10.0 [+10.0, +10.0]", "10 of 10", "yes |"],
    }


def test_the_search_is_held_against_axolotls_runs(search, results):
    found = search_tables.agreement(PLAN, results)
    assert found.table.splitlines()[2:] == [
        "| `kto` | 88.0 / 90.0 (-2.0) |",
        f"| `{ANCHOR}` | 89.0 / 90.0 (-1.0) |",
    ]
    # the standard error of ten values that lie a point apart is 0.96
    assert found.findings == (
        "Over these 2 points the search's mean lies -1.5 from axolotl's on average, 1.5 where the sign is "
        "left out, -2.0 at most; 1 of the differences exceed twice their standard error.\n"
    )


def test_the_figure_of_settings_has_a_panel_for_each_place(search, results):
    (axis,) = figures.contenders(PLAN, results).axes
    assert [label.get_text() for label in axis.get_yticklabels()] == [DOUBTED, ANCHOR, "kto", "dpo"]
    places = [bars.lines[0].get_xdata()[0] for bars in axis.containers]
    assert places == pytest.approx([93.0, 90.0, 90.0, 80.0])
