"""`lora_model_dir` in training: a round that begins with the adapter of the last one."""

import json
import logging
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch.nn.functional import softplus
from transformers import AutoModelForCausalLM

from tests.adapters import make_adapter
from tests.by_hand import logprob
from tests.conftest import LORA, QLORA
from tests.helpers import Snapshots, column, scored_as_reference, sequences, steps
from tests.marks import slow_except
from tests.tiny import make_pairs, unpair, with_rows, with_test_rows

BETA = 0.1
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def start(tiny_model, tmp_path) -> Path:
    """An adapter that another run might have left."""
    return make_adapter(tmp_path / "start", tiny_model)


@pytest.fixture
def config(paired_config, start) -> dict:
    return {**paired_config, **LORA, "lora_model_dir": str(start)}


def adapted(base, folder, **kwargs) -> PeftModel:
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder, **kwargs)


# --- By hand ------------------------------------------------------------------------------------


def paired_loss(scores, dataset):
    gap = scores.reshape(-1, 2, 2)  # pairs, (chosen, rejected), (policy, reference)
    upper, lower = (gap[:, 0] - gap[:, 1]).unbind(-1)
    return softplus(-BETA * (upper.sort().values - lower.sort().values)).mean()


def unpaired_loss(scores, dataset):
    rewards, label = scores[:, 0] - scores[:, 1], torch.tensor(dataset["label"])
    return softplus(-BETA * (rewards[label].sort().values - rewards[~label].sort().values)).mean()


BY_HAND = {"aot": paired_loss, "aot_unpaired": unpaired_loss}


@pytest.mark.parametrize("rl", BY_HAND)
def test_two_steps_by_hand(build, config, unpaired_config, tiny_model, start, tmp_path, rl):
    pairs = make_pairs(4)
    if rl == "aot":  # an effective batch is the whole data set, whose order the sort forgets
        config = with_rows(config, tmp_path / "rows.jsonl", pairs)
    else:
        config = with_rows(
            {**unpaired_config, **LORA, "lora_model_dir": str(start)}, tmp_path / "r.jsonl", unpair(pairs)
        )
    size = {"aot": 4, "aot_unpaired": 8}[rl]
    config |= {"micro_batch_size": size // 2, "gradient_accumulation_steps": 2, "num_epochs": 2}
    trainer = build({**config, "rl_beta": BETA, "max_steps": 2, "max_grad_norm": 1e9, "weight_decay": 0.0})
    snapshots = Snapshots()
    trainer.add_callback(snapshots)
    data = sequences(trainer.train_dataset)

    policy = adapted(tiny_model, start, is_trainable=True)
    merged = adapted(tiny_model, start).double().merge_and_unload()
    with torch.no_grad():
        reference = torch.stack([logprob(merged, *sequence) for sequence in data])
    assert scored_as_reference(trainer).double() == pytest.approx(reference, abs=1e-4, rel=1e-5)
    trained = {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert trained == {name for name, p in policy.named_parameters() if p.requires_grad}
    trainer.train()
    optimizer = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], weight_decay=0.0)
    for number, (step, gradients) in enumerate(zip(steps(trainer), snapshots.gradients, strict=True)):
        scores = torch.stack([logprob(policy, *sequence) for sequence in data])
        loss = BY_HAND[rl](torch.stack([scores, reference.float()], -1), trainer.train_dataset)
        optimizer.zero_grad()
        loss.backward()
        assert step["loss"] == pytest.approx(loss.item(), rel=1e-5)
        assert (step["rewards/chosen"] == step["rewards/rejected"] == 0) is (number == 0)
        by_hand = {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}
        assert gradients.keys() == by_hand.keys() and not any(".ref." in name for name in gradients)
        for name, gradient in by_hand.items():
            assert (gradients[name] - gradient).norm() < 1e-4 * gradient.norm(), name
        optimizer.step()


@pytest.mark.slow
def test_a_round_without_learning_gives_back_its_start(run, config, start):
    run({**config, "learning_rate": 0.0, "weight_decay": 0.0, "seed": 7})
    before, after = load_file(start / WEIGHTS), load_file(Path(config["output_dir"]) / WEIGHTS)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.equal(after[name]), name


# --- Kinds of adapters --------------------------------------------------------------------------

TOKENS = {"tokens": ["<think>", "</think>"], "mean_resizing_embeddings": False}
EMBEDDINGS = {"lora_modules_to_save": ["embed_tokens", "lm_head"]}
KINDS = {
    "lora": LORA,
    "rslora": {**LORA, "peft_use_rslora": True},
    "dora": {**LORA, "peft_use_dora": True},
    "patterns": {**LORA, "lora_rank_pattern": {"q_proj": 2}, "lora_alpha_pattern": {"v_proj": 3}},
    "some layers": {**LORA, "peft_layers_to_transform": [1]},
    "embeddings": {**LORA, **EMBEDDINGS, **TOKENS},
    "lora of embeddings": {
        **LORA,
        "lora_target_linear": None,
        "lora_target_modules": ["q_proj", "embed_tokens", "lm_head"],
    },
    "rows of tokens": {**LORA, "peft_trainable_token_indices": [5, 7]},
    "longer embeddings": {**LORA, "special_tokens": {"pad_token": "<new pad>"}},
    "checkpointing": {**LORA, "gradient_checkpointing": True},
    "qlora": QLORA,
    "qlora, embeddings": {**QLORA, **EMBEDDINGS, **TOKENS},
    "qlora, dora": {**QLORA, "peft_use_dora": True},
}


@pytest.mark.parametrize("kind", slow_except(["qlora, embeddings"], KINDS))
def test_every_kind_of_adapter(run, build, paired_config, tmp_path, kind):
    """Two rounds: the second begins without rewards, and keeps the first one's policy as its reference."""
    config = {**paired_config, **KINDS[kind]}
    first, second = tmp_path / "first", tmp_path / "second"
    trainer = run({**config, "learning_rate": 1e-2, "output_dir": str(first), "max_steps": 2})
    names = [name for name, p in trainer.model.named_parameters() if p.requires_grad]
    base = scored_as_reference(trainer)
    with torch.no_grad():  # what the first round ended with, scored by its own trainer
        trainer.begins_as_reference = False
        trainer.reference._trainer.ref_model = trainer.model
        ended = scored_as_reference(trainer)
    assert (ended - base).abs().mean() > 0.1

    more = {"lora_model_dir": str(first), "output_dir": str(second), "learning_rate": 1e-2}
    trainer = run({**config, **more, "gradient_accumulation_steps": 2, "max_steps": 3})
    log = steps(trainer)
    assert [log[0][f"rewards/{name}"] for name in ("chosen", "rejected", "margins")] == [0, 0, 0]
    assert log[1]["rewards/margins"] != 0
    assert [name for name, p in trainer.model.named_parameters() if p.requires_grad] == names
    assert scored_as_reference(trainer) == pytest.approx(ended, rel=1e-5, abs=1e-4)

    saved, before = load_file(second / WEIGHTS), load_file(first / WEIGHTS)
    assert saved.keys() == before.keys()
    assert any(not saved[name].equal(before[name]) for name in before)
    assert not any(path.is_dir() for path in second.iterdir())
    assert not any("ref" in name.split(".") for name in load_file(second / "model.safetensors"))
    settings = json.loads((second / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == config["base_model"]


@pytest.mark.slow
def test_precision_of_the_start(build, paired_config, start):
    """A start in float32 is rounded over 4-bit weights, and so is the reference."""
    trainer = build({**paired_config, **QLORA, "lora_model_dir": str(start), "max_steps": 1})
    dtypes = {p.dtype for name, p in trainer.model.named_parameters() if "lora_" in name}
    assert dtypes == {torch.bfloat16}
    trainer.train()
    assert [steps(trainer)[0][f"rewards/{name}"] for name in ("chosen", "rejected")] == [0, 0]


@pytest.mark.slow
def test_a_tied_model_whose_embeddings_are_trained(run, paired_config, tiny_model, tmp_path):
    tied = AutoModelForCausalLM.from_pretrained(tiny_model, tie_word_embeddings=True)
    tied.save_pretrained(tmp_path / "tied")
    for file in tiny_model.glob("tokenizer*"):
        (tmp_path / "tied" / file.name).write_bytes(file.read_bytes())
    more = {"lora_modules_to_save": ["lm_head"], "peft_ensure_weight_tying": True}
    config = {**paired_config, **LORA, **more, "base_model": str(tmp_path / "tied"), "learning_rate": 1e-2}
    run({**config, "output_dir": str(tmp_path / "first"), "max_steps": 2})
    trainer = run({**config, "lora_model_dir": str(tmp_path / "first"), "max_steps": 2})
    log = steps(trainer)
    assert [log[0][f"rewards/{name}"] for name in ("chosen", "rejected")] == [0, 0]
    assert log[1]["rewards/margins"] != 0
    expected = adapted(tmp_path / "tied", tmp_path / "first")
    with torch.no_grad():
        found = [logprob(expected, *sequence).item() for sequence in sequences(trainer.train_dataset)]
    assert scored_as_reference(trainer).tolist() == pytest.approx(found, rel=1e-5, abs=1e-4)


# --- Files, checkpoints, reports ----------------------------------------------------------------

SAVING = {"save_strategy": "steps", "save_steps": 2}


@pytest.mark.slow
def test_a_resumed_round_ends_as_an_undisturbed_one(run, config, tmp_path):
    undisturbed = run({**config, **SAVING, "output_dir": str(tmp_path / "undisturbed")})
    checkpoint = tmp_path / "undisturbed/checkpoint-2"
    assert not any(path.is_dir() for path in checkpoint.iterdir())
    resumed = run({**config, **SAVING, "resume_from_checkpoint": str(checkpoint)})
    for name in ("loss", "grad_norm", "rewards/chosen", "logps/rejected", "dominance/violation"):
        assert column(undisturbed, name) == column(resumed, name)
    expected, actual = (load_file(tmp_path / out / WEIGHTS) for out in ("undisturbed", "out"))
    for name, tensor in expected.items():
        assert tensor.equal(actual[name]), name


@pytest.mark.slow
def test_a_round_is_not_resumed_from_another_start(run, build, config, start, tiny_model, tmp_path):
    run({**config, **SAVING})
    resume = {"resume_from_checkpoint": f"{config['output_dir']}/checkpoint-2"}
    other = make_adapter(tmp_path / "other", tiny_model, seed=2)
    moved = start.rename(tmp_path / "moved")
    refused = r"`weights of lora_model_dir: {}` \(the checkpoint: [0-9a-f]{{16}}\)"
    for folder, now in ((other, "[0-9a-f]{16}"), (None, "None")):
        with pytest.raises(ValueError, match=refused.format(now)):
            changes = {"lora_model_dir": folder and str(folder), "output_dir": str(tmp_path / "again")}
            build({**config, **changes}).train(**resume)
    again = {"lora_model_dir": str(moved), "output_dir": str(tmp_path / "again")}
    trainer = build({**config, **again})
    trainer.train(**resume)  # the same adapter in another place
    assert trainer.state.global_step == 4


@pytest.mark.slow
def test_precomputed_references_are_those_of_the_start(build, config, start, tiny_model, tmp_path):
    more = {"precompute_ref_log_probs": True, "dataset_prepared_path": str(tmp_path / "prepared")}
    other = make_adapter(tmp_path / "other", tiny_model, seed=2)
    files = set()
    for number, folder in enumerate((str(start), str(other), None), start=1):
        losses = []
        for keys in ({}, more):
            trainer = build({**config, **keys, "lora_model_dir": folder})
            trainer.train()
            losses.append(column(trainer, "loss"))
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
        files |= set((tmp_path / "prepared/aot_references").glob("*.safetensors"))
        assert len(files) == number


@pytest.mark.slow
def test_evaluation_and_report_compare_with_the_start(run, config, tiny_model, start, tmp_path):
    config = with_test_rows(config, tmp_path / "eval.jsonl", make_pairs(12, seed=5))
    more = {"eval_steps": 2, "max_steps": 2, "aot_report": True, "learning_rate": 1e-2}
    logger = logging.getLogger("axolotl_aot.report.run_report")
    told = []
    handler = logging.Handler()
    handler.emit = lambda record: told.append(record.getMessage())
    logger.addHandler(handler)
    try:
        trainer = run({**config, **more})
    finally:
        logger.removeHandler(handler)
    evaluations = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    report = json.loads((Path(config["output_dir"]) / "dominance/report.json").read_text())
    changes = report["runs"]["aot"]["changes"]
    policies = {
        "before": adapted(tiny_model, start),
        "after": adapted(tiny_model, config["output_dir"]),
    }
    means = {}
    with torch.no_grad():
        for when, model in policies.items():
            found = [logprob(model, *sequence).item() for sequence in sequences(trainer.eval_dataset)]
            means[when] = torch.tensor(found).reshape(-1, 2).mean(0).tolist()
            for side, mean in zip(("chosen", "rejected"), means[when], strict=True):
                assert changes[side][f"log_probability_{when}"] == pytest.approx(mean, rel=1e-5)
    reward = BETA * (means["after"][0] - means["before"][0])
    assert evaluations[-1]["eval_rewards/chosen"] == pytest.approx(reward, abs=1e-4)
    assert "than under the starting policy" in changes["base_model"]
    assert report["settings"]["lora_model_dir"] == str(start)
    (line,) = [line for line in told if "Dominance report" in line]
    assert "Starting policy: " in line and "base model" not in line.lower()
    page = (Path(config["output_dir"]) / "dominance/report.html").read_text()
    assert "Starting policy: " in page and "base model" not in page.lower().replace("base_model", "")
