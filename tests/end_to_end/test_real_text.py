"""Real answers to real instructions, from the folder that `AOT_REAL_DATA` names."""

import json
import os
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from tests.helpers import column
from tests.tiny import make_model

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


def learns(trainer) -> None:
    trainer.train()
    report(trainer)
    losses = column(trainer, "loss")
    assert len(losses) == 20
    assert losses[0] == pytest.approx(0.693147, rel=1e-5)
    assert sum(losses[-5:]) / 5 < losses[0]


@pytest.mark.slow
@needs_data
def test_pairs(build, real, real_model, lora):
    entry = {"path": str(PAIRS), "type": "chat_template"}
    learns(build({**real, **lora, "base_model": real_model, "rl": "aot", "datasets": [entry]}))


def counted(trainer) -> dict[bool, int]:
    return Counter(trainer.train_dataset["label"])


@pytest.mark.slow
@needs_data
def test_scored_answers_as_positives_and_negatives(build, real, real_model, lora):
    entry = {"path": str(SCORED), "type": "scored", "positive_above": 0.5, "negative_below": 0.05}
    config = {**real, **lora, "base_model": real_model, "rl": "aot_unpaired", "datasets": [entry]}
    trainer = build({**config, "gradient_accumulation_steps": 8})

    fits = defaultdict(int)  # prompts that leave room for an answer, as the tokenizer's own template has them
    for line in SCORED.open():
        row = json.loads(line)
        message = [{"role": "user", "content": row["prompt"]}]
        render = {"tokenize": True, "add_generation_prompt": True, "return_dict": False}
        fits[row["score"]] += len(trainer.processing_class.apply_chat_template(message, **render)) < 512
    assert counted(trainer) == {
        True: sum(count for score, count in fits.items() if score > 0.5),
        False: sum(count for score, count in fits.items() if score < 0.05),
    }
    learns(trainer)
    assert column(trainer, "dominance/one_label_steps")[-1] == 0


@pytest.mark.slow
@needs_data
def test_pairs_as_answers(build, real, real_model, lora):
    datasets = [{"path": str(PAIRS), "type": "pairs"}]
    config = {**real, **lora, "base_model": real_model, "rl": "aot_unpaired", "datasets": datasets}
    trainer = build({**config, "gradient_accumulation_steps": 8})
    assert counted(trainer) == {True: 411, False: 411}  # of 414; three prompts are too long
    learns(trainer)


@needs_data
def test_answers_of_several_models_as_a_ranking(build, real, real_model, lora):
    datasets = [{"path": str(SCORED), "type": "ranked"}]
    config = {**real, **lora, "base_model": real_model, "datasets": datasets, "sequence_len": 4096}
    scores = defaultdict(list)
    for line in SCORED.open():
        row = json.loads(line)
        scores[row["prompt"]].append(row["score"])
    distinct = [s for s in scores.values() if max(s) > min(s)]
    assert len(build({**config, "rl": "aot"}).train_dataset) == len(distinct)
    assert counted(build({**config, "rl": "aot_unpaired"})) == {
        True: sum(s.count(max(s)) for s in distinct),
        False: sum(s.count(min(s)) for s in distinct),
    }
