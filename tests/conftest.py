"""A tiny real Llama with its own tokenizer, tiny data, and a way to run YAMLs through axolotl."""

import gc
import os
from pathlib import Path

# before anything imports axolotl: no look-ups on a network, no GPU, and one thread for each of the
# processes that `make test` runs the tests in
os.environ.update(
    AXOLOTL_DO_NOT_TRACK="1",
    HF_HUB_OFFLINE="1",
    OMP_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
    WANDB_MODE="offline",
)

import pytest
import torch
import yaml

from tests.processes import Processes
from tests.tiny import make_model, make_pairs, unpair, with_test_rows, without_report, write_jsonl

torch.set_num_threads(1)

LONGEST_FIRST = ("tests/end_to_end", "tests/training", "")  # folders, in the order they are begun


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """pytest-xdist hands out files in this order: with short ones last, its processes end together."""
    items.sort(
        key=lambda item: next(i for i, folder in enumerate(LONGEST_FIRST) if item.nodeid.startswith(folder))
    )


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """Folder of a 2-layer Llama and its tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    make_model(folder)
    return folder


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """Folder with pairs.jsonl (48 rows) and unpaired.jsonl (36 positives, 48 negatives)."""
    folder = tmp_path_factory.mktemp("data")
    pairs = make_pairs(48)
    write_jsonl(folder / "pairs.jsonl", pairs)
    write_jsonl(folder / "unpaired.jsonl", unpair(pairs)[: 2 * 36] + unpair(pairs[36:], only=False))
    return folder


@pytest.fixture
def base_config(tiny_model, data, tmp_path) -> dict:
    """What every YAML of a test starts from; each test adds its `rl:` and more."""
    return {
        "base_model": str(tiny_model),
        "plugins": ["axolotl_aot.AOTPlugin"],
        "dataset_prepared_path": str(data / "prepared"),
        "dataset_num_proc": 1,  # for so few rows, starting processes takes longest
        "output_dir": str(tmp_path / "out"),
        "seed": 42,  # without it axolotl's own types shuffle in another order each time
        "sequence_len": 128,
        "micro_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "max_steps": 4,
        "num_epochs": 1,
        "optimizer": "adamw_torch",
        "lr_scheduler": "constant",
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "bf16": False,
        "fp16": False,
        "attn_implementation": "sdpa",
        "val_set_size": 0,
        "special_tokens": {"pad_token": "<pad>"},
    }


@pytest.fixture
def paired_config(base_config, data) -> dict:
    entry = {"path": str(data / "pairs.jsonl"), "type": {"field_prompt": "prompt"}}
    return {**base_config, "rl": "aot", "rl_beta": 0.1, "datasets": [entry]}


@pytest.fixture
def unpaired_config(base_config, data) -> dict:
    entry = {"path": str(data / "unpaired.jsonl"), "type": {"field_prompt": "prompt"}}
    return {**base_config, "rl": "aot_unpaired", "rl_beta": 0.1, "datasets": [entry]}


@pytest.fixture
def evaluated(paired_config, tmp_path) -> dict:
    """A run that evaluates and saves after every step, on other pairs, and soon gets worse on them."""
    return {
        **with_test_rows(paired_config, tmp_path / "eval.jsonl", make_pairs(12, seed=5)),
        "eval_steps": 1,
        "save_steps": 1,
        "save_strategy": None,
        "save_total_limit": 12,
        "max_steps": 8,
        "metric_for_best_model": "eval_dominance/violation",
    }


LORA = {
    "adapter": "lora",
    "lora_r": 4,
    "lora_alpha": 8,
    "lora_target_linear": True,
    # axolotl switches its Triton kernels on for `axolotl inference`; they need a GPU
    "lora_mlp_kernel": False,
    "lora_qkv_kernel": False,
    "lora_o_kernel": False,
    "lora_embedding_kernel": False,
}
QLORA = {**LORA, "adapter": "qlora", "load_in_4bit": True}


@pytest.fixture
def lora() -> dict:
    return dict(LORA)


@pytest.fixture
def qlora() -> dict:
    return dict(QLORA)


@pytest.fixture(scope="session")
def axolotl_imported() -> None:
    """axolotl collects garbage often; what the imports left behind need not be looked at each time."""
    import axolotl.core.builders
    import axolotl.train  # noqa: F401

    gc.freeze()


@pytest.fixture
def load(tmp_path, axolotl_imported):
    """A config dict, written to a YAML and loaded as axolotl's commands load it.

    Without a report, unless the config sets `aot_report`.
    """
    from axolotl.cli.config import load_cfg

    def load(config: dict, **kwargs):
        path = tmp_path / "config.yml"
        path.write_text(yaml.safe_dump(without_report(config)))
        return load_cfg(str(path), **kwargs)

    return load


@pytest.fixture
def build(load):
    """The trainer that axolotl builds from a config dict, ready to train."""
    from axolotl.common.datasets import load_preference_datasets
    from axolotl.train import setup_model_and_trainer

    def build(config: dict):
        cfg = load(config)
        return setup_model_and_trainer(cfg, load_preference_datasets(cfg=cfg))[0]

    return build


@pytest.fixture
def run(load):
    """Train a config dict as `axolotl train` does, saving included; returns the trainer."""
    from axolotl.common.datasets import load_preference_datasets
    from axolotl.train import train

    def run(config: dict):
        cfg = load(config)
        return train(cfg=cfg, dataset_meta=load_preference_datasets(cfg=cfg))[2]

    return run


@pytest.fixture(scope="session")
def quickstart_model(tmp_path_factory):
    """The quickstart's small model with random weights, and its tokenizer, in a folder."""
    from axolotl_aot.quickstart.base_model import make_tokenizer, new_model

    folder = tmp_path_factory.mktemp("quickstart_model")
    tokenizer = make_tokenizer()
    new_model(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def processes():
    """Runs of axolotl in processes of their own, started quickly (see `tests/processes.py`)."""
    processes = Processes()
    yield processes
    processes.close()
