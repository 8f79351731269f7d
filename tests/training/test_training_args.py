"""Keys that axolotl reads for supervised fine-tuning only, in an AOT run."""

import pytest
from safetensors.torch import load_file

from tests.helpers import column
from tests.tiny import make_pairs, with_rows

METRIC = "eval_dominance/violation"


def history(trainer) -> list[float]:
    """The metric after each step, without the one before training."""
    return [entry[METRIC] for entry in trainer.state.log_history if METRIC in entry and entry["step"]]


def first_stop(values: list[float], patience: int) -> int:
    """After which evaluation a run stops whose metric has not fallen for `patience` evaluations."""
    best, waited = float("inf"), 0
    for number, value in enumerate(values, start=1):
        best, waited = (value, 0) if value < best else (best, waited + 1)
        if waited == patience:
            return number
    return len(values)


@pytest.mark.parametrize("adapter", ["full", "lora"])
def test_the_best_model_is_the_one_with_least_violation(run, evaluated, lora, adapter, tmp_path):
    config = {**evaluated, "load_best_model_at_end": True}
    trainer = run({**config, **(lora if adapter == "lora" else {})})
    values = history(trainer)
    assert len(values) == 8
    best = 1 + values.index(min(values))
    assert best != 8  # or the last model would be the best one anyway
    assert trainer.state.best_metric == min(values)
    assert trainer.state.best_model_checkpoint.endswith(f"checkpoint-{best}")
    name = "adapter_model.safetensors" if adapter == "lora" else "model.safetensors"
    saved = load_file(tmp_path / "out" / name)
    for key, tensor in load_file(tmp_path / f"out/checkpoint-{best}" / name).items():
        assert tensor.equal(saved[key]), key


def test_early_stopping(run, evaluated):
    values = history(run(evaluated))
    stopped = history(run({**evaluated, "early_stopping_patience": 2}))
    assert len(stopped) < len(values)
    assert len(stopped) == first_stop(values, patience=2)
    assert stopped == values[: len(stopped)]


def test_early_stopping_looks_at_the_loss_by_default(build, evaluated):
    trainer = build({**evaluated, "metric_for_best_model": None, "early_stopping_patience": 2})
    assert trainer.args.metric_for_best_model == "eval_loss"
    assert trainer.args.greater_is_better is False
    assert trainer.args.load_best_model_at_end


def test_the_last_model_is_kept_by_default(build, evaluated):
    assert not build(evaluated).args.load_best_model_at_end


def test_every_epoch_comes_to_its_end(build, paired_config, tmp_path):
    # 41 pairs in steps of 16: 3 steps an epoch, though 2 x 41 / 16 is less than 6
    config = with_rows(paired_config, tmp_path / "rows.jsonl", make_pairs(41))
    trainer = build({**config, "micro_batch_size": 16, "num_epochs": 2, "max_steps": None})
    trainer.train()
    assert column(trainer, "epoch") == pytest.approx([1 / 3, 2 / 3, 1, 4 / 3, 5 / 3, 2])
