"""The data sets of `docs/data.md`: each row and entry of its table, as a user would copy them."""

import json
import re

import pytest
import yaml

from tests.docs.pages import README, ROOT
from tests.tiny import write_jsonl

PAGE = (ROOT / "docs" / "data.md").read_text("utf-8")


def table(page: str, heading: str) -> list[list[str]]:
    """The rows of the table that begins with this heading, without back-ticks."""
    lines = re.search(rf"{re.escape(heading)}.*?\n\n", page, re.DOTALL).group().strip().splitlines()
    return [[cell.strip().strip("`") for cell in line.strip("|").split(" | ")] for line in lines[2:]]


CASES = table(PAGE, "| `rl` | what it is |")


def test_every_type_is_in_the_table():
    from axolotl_aot.data.types import TYPES

    shown = {(rl, yaml.safe_load(entry)["type"]) for rl, _, _, entry in CASES if "type: {" not in entry}
    assert {(rl, kind) for rl, kinds in TYPES.items() for kind in kinds} <= shown
    assert len(CASES) == 13


@pytest.mark.parametrize(("rl", "what", "row", "entry"), CASES, ids=[c[1] for c in CASES])
def test_a_row_and_its_entry_train(run, base_config, tmp_path, rl, what, row, entry):
    entry = yaml.safe_load(entry)
    assert entry["path"] == "data.jsonl"
    row = json.loads(row)
    rows = [row, {**row, "score": 0.1} if "score" in row else row]
    datasets = [{**entry, "path": str(write_jsonl(tmp_path / "data.jsonl", rows))}]
    if rl == "aot_unpaired":  # the other label, if the row has but one
        for label in (True, False):
            path = write_jsonl(tmp_path / f"{label}.jsonl", [{"prompt": "1 + 1?", "completion": "2"}])
            datasets.append({"path": str(path), "type": "chat_template", "label": label})
    trainer = run(
        {**base_config, "rl": rl, "datasets": datasets, "max_steps": 1, "skip_prepare_dataset": True}
    )
    assert trainer.state.global_step == 1
    prompts = [prompt for prompt in trainer.train_dataset["prompt"] if "2 + 2?" in prompt]
    assert prompts
    answers = "".join(
        str(trainer.train_dataset[column][:])
        for column in ("completion", "chosen", "rejected")
        if column in trainer.train_dataset.column_names
    )
    assert "4" in answers


def test_every_option_is_in_the_table():
    from axolotl_aot.data.types import AXOLOTL_TYPES, TYPES

    options = {o for kinds in TYPES.values() for kind in kinds.values() for o in kind.model_fields}
    options |= {o for kind in AXOLOTL_TYPES.values() for o in kind.model_fields}
    # not shown: the type itself, and what axolotl has for reading by and by or no longer asks for
    for option in options - {"type", "trust_remote_code"}:
        assert f"`{option}`" in PAGE, option


def test_the_readme_shows_rows_of_the_table():
    shown = table(README.read_text("utf-8"), "| `rl` | a row |")
    assert len(shown) == 3
    assert all(row in [[rl, text, entry] for rl, _, text, entry in CASES] for row in shown)
