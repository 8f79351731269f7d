"""What follows training: adapters on disk, `axolotl evaluate`, `merge-lora`, `inference`, `preprocess`."""

import csv
import io
import sys
from pathlib import Path

import pytest
import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests.adapters import make_adapter
from tests.by_hand import logprob
from tests.helpers import column, steps
from tests.marks import slow_except
from tests.tiny import make_pairs, unpair, write_jsonl


@pytest.fixture(params=["paired", "unpaired"])
def config(request, paired_config, unpaired_config, tmp_path):
    config = {"paired": paired_config, "unpaired": unpaired_config}[request.param]
    pairs = make_pairs(7, seed=5)
    rows = pairs if request.param == "paired" else unpair(pairs)
    path = write_jsonl(tmp_path / "eval.jsonl", rows)
    datasets = [{"path": config["datasets"][0]["path"], "type": "chat_template"}]
    test_datasets = [{"path": str(path), "split": "train", "type": "chat_template", "on_bad_rows": "drop"}]
    more = {"datasets": datasets, "test_datasets": test_datasets, "val_set_size": None}
    return {**config, **more, "eval_steps": 6, "max_steps": 6}


def cli(command: str, config: dict, tmp_path: Path, **kwargs) -> None:
    """One of axolotl's commands on a YAML, in this process."""
    from importlib import import_module

    path = tmp_path / "config.yml"
    path.write_text(yaml.safe_dump(config))
    import_module(f"axolotl.cli.{command}").do_cli(str(path), **kwargs)


@pytest.fixture
def arguments(monkeypatch):
    # the commands parse sys.argv, which here is pytest's
    monkeypatch.setattr(sys, "argv", ["axolotl"])


def evaluation(output_dir: str) -> dict[str, float]:
    """The column "validation" of what `axolotl evaluate` writes."""
    with (Path(output_dir) / "eval_summary.csv").open() as file:
        return {row["metric"]: float(row["validation"]) for row in csv.DictReader(file) if row["validation"]}


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        ("paired", "lora"),
        ("unpaired", "qlora"),
        pytest.param("paired", "qlora", marks=pytest.mark.slow),
        pytest.param("unpaired", "lora", marks=pytest.mark.slow),
    ],
    indirect=["config"],
)
def test_adapter_from_training_to_inference(
    run, config, kind, lora, qlora, tmp_path, arguments, monkeypatch, capsys
):
    config = {**config, **{"lora": lora, "qlora": qlora}[kind], "gradient_accumulation_steps": 2}
    trainer = run(config)
    first, last = steps(trainer)[0], [e for e in trainer.state.log_history if "eval_loss" in e][-1]
    assert (first["rewards/chosen"], first["rewards/rejected"]) == (0, 0)
    assert last["eval_rewards/margins"] != 0

    # what was saved is what was trained
    base = AutoModelForCausalLM.from_pretrained(config["base_model"])
    trained = dict(trainer.model.named_parameters())
    saved = dict(PeftModel.from_pretrained(base, config["output_dir"]).named_parameters())
    matrices = [name for name in trained if "lora_B" in name]
    assert matrices and all(trained[name].abs().sum() > 0 for name in matrices)
    for name in matrices:
        assert torch.equal(saved[name], trained[name].to(saved[name].dtype)), name

    # axolotl evaluate: the trained adapter against the model without it
    cli("evaluate", config, tmp_path)
    metrics = evaluation(config["output_dir"])
    tolerance = {"rel": 1e-5, "abs": 1e-6} if kind == "lora" else {"rel": 2e-2, "abs": 2e-2}
    for name in ("loss", "rewards/margins", "dominance/violation"):
        assert metrics[name] == pytest.approx(last[f"eval_{name}"], **tolerance), name

    # axolotl merge-lora: the merged model answers as base and adapter do together
    cli("merge_lora", config, tmp_path)
    merged = AutoModelForCausalLM.from_pretrained(Path(config["output_dir"]) / "merged")
    ids = torch.tensor([[5, 6, 7, 8]])
    base_logits = AutoModelForCausalLM.from_pretrained(config["base_model"])(ids).logits
    merged_logits = merged(ids).logits
    assert (merged_logits - base_logits).abs().max() > 1e-3
    if kind == "lora":
        trainer.model.eval()
        assert torch.allclose(merged_logits, trainer.model(ids).logits, atol=1e-3)

    # axolotl inference; with 4-bit weights it fails on a CPU, in axolotl's cast of the packed weights
    if kind == "qlora":
        return
    monkeypatch.setattr(sys, "stdin", io.StringIO("red? "))
    cli("inference", {**config, "lora_model_dir": config["output_dir"]}, tmp_path)
    assert "Give me an instruction" in capsys.readouterr().out


@pytest.mark.parametrize("config", slow_except(["unpaired"], ["paired", "unpaired"]), indirect=True)
def test_qlora_learns(build, config, qlora):
    more = {"max_steps": 60, "num_epochs": 60, "micro_batch_size": 16, "learning_rate": 1e-2}
    trainer = build({**config, **qlora, **more})
    base_layer = trainer.model.base_model.model.model.layers[0].mlp.up_proj.base_layer
    assert type(base_layer).__name__ == "Linear4bit" and base_layer.weight.quant_state is not None
    trainer.train()
    losses = column(trainer, "loss")
    assert sum(losses[-20:]) / 20 < 0.7 * losses[0]  # of a few rows each: a single step's loss says little


def test_evaluating_before_training_says_so(config, lora, tmp_path, arguments):
    with pytest.raises(ValueError, match=r"nothing trained in .*train first"):
        cli("evaluate", {**config, **lora}, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("config", ["paired"], indirect=True)
def test_a_round_from_training_to_merging(run, config, lora, tiny_model, tmp_path, arguments, caplog):
    """What follows a round: its adapter by itself, against the base model; and where its start is meant."""
    start = make_adapter(tmp_path / "start", tiny_model)
    round_ = {**config, **lora, "lora_model_dir": str(start), "learning_rate": 1e-2}
    trainer = run(round_)

    @torch.no_grad()
    def margin(model) -> float:
        ends = ("chosen_ids", "rejected_ids")
        found = [
            [logprob(model, row["prompt_ids"], row[end]) for end in ends] for row in trainer.eval_dataset
        ]
        return (torch.tensor(found) @ torch.tensor([1.0, -1.0])).mean().item()

    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    of_base = margin(base)
    of_start = margin(PeftModel.from_pretrained(base, start).merge_and_unload())
    cli("merge_lora", {**round_, "lora_model_dir": None}, tmp_path)
    merged = AutoModelForCausalLM.from_pretrained(Path(config["output_dir"]) / "merged")
    of_round = margin(merged)
    ids = torch.tensor([[5, 6, 7, 8]])
    assert torch.allclose(merged(ids).logits, trainer.model.eval()(ids).logits, atol=1e-3)

    beta = config["rl_beta"]
    last = [entry for entry in trainer.state.log_history if "eval_loss" in entry][-1]
    assert last["eval_rewards/margins"] == pytest.approx(beta * (of_round - of_start), abs=1e-3)
    for keys, expected, warns in (
        ({"lora_model_dir": None}, of_round, False),
        ({"lora_model_dir": str(start)}, of_start, True),
    ):
        caplog.clear()
        with caplog.at_level("WARNING", logger="axolotl_aot"):
            cli("evaluate", {**round_, **keys}, tmp_path)
        found = evaluation(config["output_dir"])["rewards/margins"]
        assert found == pytest.approx(beta * (expected - of_base), abs=1e-3)
        assert ("for the adapter in output_dir" in caplog.text) is warns


def test_preprocess_prepares_what_train_then_uses(config, build, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(sys, "argv", ["axolotl", "--debug"])
    config = {**config, "dataset_prepared_path": str(tmp_path / "prepared")}
    with caplog.at_level("INFO"):
        cli("preprocess", config, tmp_path)
    assert list((tmp_path / "prepared").rglob("*.arrow"))
    assert "datasets[0]" in caplog.text and "test_datasets[0]" in caplog.text  # what became of the rows
    assert "INPUT PROMPT" in caplog.text  # axolotl's own look at samples
    with caplog.at_level("INFO", logger="axolotl"):
        build(config)
    assert "Loading prepared dataset from disk" in caplog.text


def test_full_fine_tuning_saves_the_trained_model(run, config):
    trainer = run(config)
    saved = AutoModelForCausalLM.from_pretrained(config["output_dir"]).state_dict()
    base = AutoModelForCausalLM.from_pretrained(config["base_model"]).state_dict()
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(saved[name], parameter), name
    assert any(not torch.equal(saved[name], base[name]) for name in saved)
