"""The YAML blocks of the pages pass axolotl's validation, which keeps every key; the Python blocks run."""

import copy

import pytest
import yaml

from tests.docs.pages import all_blocks
from tests.test_plugin import validate

# What a fragment is put into. Nothing of it is read in validation.
PAIRS = {"path": "pairs.jsonl", "type": "pairs"}
MINIMAL = {
    "base_model": "NousResearch/Meta-Llama-3-8B-Instruct",
    "plugins": ["axolotl_aot.AOTPlugin"],
    "rl": "aot",
    "datasets": [PAIRS],
    "micro_batch_size": 1,
    "gradient_accumulation_steps": 4,
    "learning_rate": 1e-5,
    "bf16": True,
}
REFORMED = {"plugins", "rl", "datasets", "test_datasets"}  # axolotl gives these other forms
YAMLS = all_blocks("yaml")


@pytest.mark.parametrize("block", YAMLS, ids=[block.name for block in YAMLS])
def test_a_yaml_block_is_valid(block):
    shown = yaml.safe_load(block.text)
    cfg = validate(copy.deepcopy({**MINIMAL, **shown}))
    assert cfg.trainer_cls.startswith("axolotl_aot.training.trainers.")
    for key in shown.keys() - REFORMED:
        assert cfg[key] == shown[key], f"axolotl dropped or changed {key}"


def test_there_are_yaml_blocks():
    assert {block.name.partition(":")[0] for block in YAMLS} >= {"README.md", "docs/configuration.md"}


@pytest.mark.parametrize("block", all_blocks("python"), ids=lambda block: block.name)
def test_a_python_block_runs(block):
    exec(compile(block.text, block.name, "exec"), {})
