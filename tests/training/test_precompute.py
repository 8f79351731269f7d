"""The reference scored once: the same run with and without, one file for all runs that can share it."""

import logging

import pytest
import torch

from tests.helpers import column, counting_forwards
from tests.tiny import make_pairs, unpair, with_rows, with_test_rows


@pytest.fixture(params=["paired", "unpaired"])
def config(request, paired_config, unpaired_config, tmp_path):
    config = {"paired": paired_config, "unpaired": unpaired_config}[request.param]
    return {**config, "dataset_prepared_path": str(tmp_path / "prepared"), "gradient_accumulation_steps": 2}


@pytest.fixture(params=["full", "lora"])
def adapter(request, lora):
    return lora if request.param == "lora" else {}


ON = {"precompute_ref_log_probs": True}


def files(tmp_path) -> list:
    return sorted((tmp_path / "prepared/aot_references").glob("*"))


def test_gives_the_same_run_and_scores_the_reference_once(build, config, adapter, tmp_path, caplog):
    runs, passes = [], []
    for options in ({}, ON, ON):
        trainer = build({**config, **adapter, **options})
        with counting_forwards(trainer.ref_model or trainer.model) as seen:
            trainer.train()
        runs.append(trainer)
        passes.append(len(seen))
    without, first, again = passes
    of_policy = (
        0 if runs[0].ref_model else 7 + 3 + 3 * 2
    )  # probes; the first step scores once and trains twice
    assert without == of_policy + 4 * 2
    assert first > again == of_policy + 1  # the spot check
    (path,) = files(tmp_path)
    assert f"log-probabilities of the reference are known from {path}" in caplog.text
    for run in runs[1:]:
        for key in ("loss", "grad_norm", "rewards/chosen"):
            assert column(runs[0], key) == pytest.approx(column(run, key), rel=1e-5, abs=1e-6)
    assert column(runs[1], "loss") == column(runs[2], "loss")


def test_every_known_number_is_the_reference_models(build, config, lora):
    trainer = build({**config, **lora, **ON})
    trainer.train()
    with trainer.model.disable_adapter(), torch.no_grad():
        for row in trainer.train_dataset.select(range(6)):
            for name in trainer.objective.samples.columns:
                prompt, completion = row["prompt_ids"], row[name]
                logits = trainer.model(torch.tensor([prompt + completion])).logits[0].double()
                table = torch.log_softmax(logits[len(prompt) - 1 : -1], dim=-1)
                expected = table.gather(1, torch.tensor(completion)[:, None]).sum().item()
                assert trainer.precomputed.cache.lookup(prompt, completion) == pytest.approx(
                    expected, rel=1e-5
                )


def test_new_rows_alone_are_scored_anew_and_evaluation_has_its_own(build, config, lora, tmp_path):
    pairs = make_pairs(30)
    rows = {"aot": lambda count: pairs[:count], "aot_unpaired": lambda count: unpair(pairs[:count])}
    sizes = []
    for count in (20, 30):
        run = with_rows(config, tmp_path / f"{count}.jsonl", rows[config["rl"]](count))
        run = with_test_rows(run, tmp_path / "test.jsonl", rows[config["rl"]](5))
        trainer = build({**run, **lora, **ON, "max_steps": 1, "eval_strategy": "no"})
        batches = []
        score = trainer.reference.score
        trainer.reference.score = lambda batch, score=score, batches=batches: (
            batches.append(len(batch["input_ids"])) or score(batch)
        )
        trainer.train()
        trainer.evaluate()  # of rows that training has
        sizes.append(sum(batches))
    spot_checks = 4
    assert sizes == [40, 20 + spot_checks]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[: len(content) // 2], "damaged"),
        (lambda content: content[:-100] + bytes(100), "damaged or another model's"),
        (lambda content: b"", "damaged"),
    ],
)
def test_a_damaged_file_is_computed_anew_and_said_so(build, config, lora, tmp_path, caplog, damage, message):
    losses = []
    for _ in range(2):
        trainer = build({**config, **lora, **ON})
        trainer.train()
        losses.append(column(trainer, "loss"))
        (path,) = files(tmp_path)
        whole = path.read_bytes()
        path.write_bytes(damage(whole))
        caplog.clear()
    with caplog.at_level(logging.WARNING, logger="axolotl_aot"):
        trainer = build({**config, **lora, **ON})
    assert f"{path}: it is {message}" in caplog.text and "computing it anew" in caplog.text
    trainer.train()
    assert column(trainer, "loss") == losses[0] == losses[1]
    assert path.read_bytes() == whole


def test_a_file_of_other_weights_is_noticed(build, config, lora, tmp_path, caplog):
    trainer = build({**config, **lora, **ON})
    trainer.train()
    references = trainer.precomputed.cache
    right = dict(references._known)
    references._known = {key: 1.1 * value for key, value in right.items()}
    references.save()  # whole, and under this model's name
    with caplog.at_level(logging.WARNING, logger="axolotl_aot"):
        again = build({**config, **lora, **ON})
        again.train()
    assert "is not of this reference" in caplog.text
    assert again.precomputed.cache._known == pytest.approx(right, rel=1e-5)
    assert column(again, "loss") == pytest.approx(column(trainer, "loss"), rel=1e-5)


def test_other_weights_have_another_file(build, config, lora, tiny_model, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    other = tmp_path / "other"
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    model.lm_head.weight.data.mul_(1.5)
    model.save_pretrained(other)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(other)
    for folder in (tiny_model, other):
        trainer = build({**config, **lora, **ON, "base_model": str(folder)})
        trainer.train()
        assert abs(column(trainer, "rewards/chosen")[0]) < 1e-4
    assert len(files(tmp_path)) == 2


def test_rewards_that_are_not_0_before_training_stop_the_run(build, config, lora):
    trainer = build({**config, **lora})
    with torch.no_grad():
        for name, parameter in trainer.model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.05)
    with pytest.raises(RuntimeError, match="before any training"):
        trainer.train()
