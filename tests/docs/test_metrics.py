"""The metrics that the pages name are those that runs log, and `docs/metrics.md` has all of them."""

import re

import pytest

from tests.docs.pages import PAGES, ROOT, name
from tests.tiny import make_pairs, unpair, with_test_rows

METRIC = re.compile(r"(?:eval_)?((?:rewards|logps|dominance|answers)/[a-z]\w*)")


def named(text: str) -> set[str]:
    """The metrics in back-ticks, without the prefix of an evaluation."""
    codes = map(METRIC.fullmatch, re.findall(r"`([^`\n]+)`", text))
    return {found[1] for found in codes if found}


@pytest.fixture(scope="module")
def in_tables() -> set[str]:
    lines = (ROOT / "docs" / "metrics.md").read_text("utf-8").splitlines()
    return set().union(*(named(line.split(" | ")[0]) for line in lines if line.startswith("|")))


def test_the_tables_have_what_runs_log(run, paired_config, unpaired_config, lora, tmp_path, in_tables):
    logged: set[str] = set()
    for config in (paired_config, unpaired_config):
        pairs = make_pairs(4, seed=5)
        rows = pairs if config["rl"] == "aot" else unpair(pairs)
        config = with_test_rows({**config, **lora}, tmp_path / f"{config['rl']}.jsonl", rows)
        keys = {"aot_entropy": 1.0, "aot_report": True, "max_steps": 1, "eval_steps": 1}
        for line in run({**config, **keys}).state.log_history:
            logged |= {found[1] for found in map(METRIC.fullmatch, line) if found}
    assert logged == in_tables


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_no_page_names_a_metric_that_is_not_there(page, in_tables):
    assert named(page.read_text("utf-8")) <= in_tables
