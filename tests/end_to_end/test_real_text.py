"""Real answers to real instructions, from the folder that `AOT_REAL_DATA` names."""

import json
import os
from pathlib import Path

import pytest

from tests.helpers import column
from tests.tiny import make_model, write_jsonl

DATA = Path(os.environ.get("AOT_REAL_DATA", "no folder named by AOT_REAL_DATA"))
PAIRS, SCORED = DATA / "pairs.jsonl", DATA / "scored.jsonl"

needs_data = pytest.mark.skipif(not PAIRS.is_file(), reason=f"no real data: {DATA}")


@pytest.fixture
def real(base_config, tmp_path) -> dict:
    return {
        **base_config,
        "dataset_prepared_path": str(tmp_path / "prepared"),
        "sequence_len": 512,
        "excess_length_strategy": "truncate",
        "micro_batch_size": 4,
        "gradient_accumulation_steps": 4,
        "max_steps": 20,
        "num_epochs": 3,
        "rl_beta": 0.1,
        "learning_rate": 2e-3,
        "chat_template": "tokenizer_default",
    }


@pytest.fixture(scope="module")
def real_model(tmp_path_factory) -> str:
    """The tiny Llama with a tokenizer of this text."""
    folder = tmp_path_factory.mktemp("real")
    make_model(folder, text=[json.loads(line)["completion"] for line in SCORED.open()][:500], vocab_size=2000)
    return str(folder)


def report(trainer) -> None:
    for key in ("loss", "dominance/violation"):
        values = column(trainer, key)
        print(f"{trainer._name} {key}: first {values[0]:.4f}, last {values[-1]:.4f}")


@needs_data
def test_pairs(build, real, real_model, lora):
    entry = {
        "path": str(PAIRS),
        "type": "chat_template.default",
        "field_messages": "messages",
        "field_chosen": "chosen",
        "field_rejected": "rejected",
    }
    trainer = build({**real, **lora, "base_model": real_model, "rl": "aot", "datasets": [entry]})
    trainer.train()
    report(trainer)
    losses = column(trainer, "loss")
    assert len(losses) == 20
    assert losses[0] == pytest.approx(0.693147, rel=1e-5)
    assert sum(losses[-5:]) / 5 < losses[0]


@needs_data
def test_scored_answers_as_positives_and_negatives(build, real, real_model, lora, tmp_path):
    rows = []
    for line in SCORED.open():
        row = json.loads(line)
        if row["score"] > 0.5 or row["score"] < 0.05:
            rows.append({**row, "label": row["score"] > 0.5})
    assert sum(row["label"] for row in rows) == 230
    entry = {"path": str(write_jsonl(tmp_path / "rows.jsonl", rows)), "type": "chatml.prompt_pairs"}
    config = {**real, **lora, "base_model": real_model, "rl": "aot_unpaired", "datasets": [entry]}
    trainer = build({**config, "gradient_accumulation_steps": 16})
    trainer.train()
    report(trainer)
    losses = column(trainer, "loss")
    assert losses[0] == pytest.approx(0.693147, rel=1e-5)
    assert sum(losses[-5:]) / 5 < losses[0]
    assert column(trainer, "dominance/one_label_steps")[-1] == 0
