"""From which checkpoints a run may go on. That it then ends the same is in end_to_end."""

import json
import shutil

import pytest
from transformers.trainer_utils import get_last_checkpoint

from tests.conftest import LORA
from tests.helpers import column
from tests.tiny import make_pairs, unpair, with_rows

SAVING = {"save_strategy": "steps", "save_steps": 2, "gradient_accumulation_steps": 2}


@pytest.fixture
def saved(run, paired_config):
    """The config of a run that has saved checkpoint-2 and checkpoint-4, and its output folder."""
    config = {**paired_config, **SAVING}
    trainer = run(config)
    return config, trainer.args.output_dir


def test_the_same_settings_go_on(run, saved):
    config, folder = saved
    trainer = run({**config, "resume_from_checkpoint": f"{folder}/checkpoint-4", "max_steps": 6})
    assert len(column(trainer, "loss")) == 6


def test_another_cut_of_the_same_batch_goes_on(run, saved):
    config, folder = saved
    more = {"max_steps": 6, "resume_from_checkpoint": f"{folder}/checkpoint-2"}
    losses = [
        column(run({**config, **more, **cut}), "loss")
        for cut in ({}, {"micro_batch_size": 2, "gradient_accumulation_steps": 4})
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize(
    ("changes", "messages"),
    [
        (
            {"rl_beta": 0.2, "aot_penalty": "squared_hinge"},
            [
                r"`rl_beta: 0.2` \(the checkpoint: 0.1\)",
                r"`aot_penalty: squared_hinge` \(the checkpoint: logistic\)",
            ],
        ),
        ({"seed": 7}, [r"`seed: 7` \(the checkpoint: 42\)"]),
        ({"micro_batch_size": 8}, [r"gradient_accumulation_steps x processes: 16` \(the checkpoint: 8\)"]),
        (
            {"aot_scope": "micro_batch"},
            [
                r"`aot_scope: micro_batch` \(the checkpoint: effective_batch\)",
                r"`micro_batch_size: 4` \(the checkpoint: None\)",
            ],
        ),
    ],
)
def test_other_settings_are_refused_by_name(run, saved, changes, messages):
    config, folder = saved
    with pytest.raises(ValueError, match="checkpoint-4 with other settings") as error:
        run({**config, **changes, "resume_from_checkpoint": f"{folder}/checkpoint-4"})
    for message in messages:
        assert error.match(message)


@pytest.fixture
def adapter_saved(run, paired_config, lora):
    """The config of a LoRA run of 4 steps, with a schedule, that has saved checkpoint-2 and checkpoint-4."""
    config = {**paired_config, **lora, **SAVING, "lr_scheduler": "linear", "warmup_steps": 0}
    config |= {"weight_decay": 0.1, "optimizer": "adamw_torch", "num_epochs": 1}
    return config, run(config).args.output_dir


# Each with what the checkpoint brings back in its place.
RESTORED = [
    ({"learning_rate": 0.01}, r"`learning_rate: 0.01` \(the checkpoint: 0.001\)"),
    ({"weight_decay": 0.5}, r"`weight_decay: 0.5` \(the checkpoint: 0.1\)"),
    ({"lr_scheduler": "cosine"}, r"`lr_scheduler: cosine` \(the checkpoint: linear\)"),
    ({"lr_scheduler": "rex"}, r"`lr_scheduler: rex` \(the checkpoint: linear\)"),
    ({"lr_scheduler_kwargs": {"a": 1}}, r"`lr_scheduler_kwargs: {'a': 1}` \(the checkpoint: {}\)"),
    ({"adam_beta1": 0.5}, r"`adam_beta1: 0.5` \(the checkpoint: 0.9\)"),
    ({"adam_epsilon": 1e-3}, r"`adam_epsilon: 0.001` \(the checkpoint: 1e-08\)"),
    ({"optimizer": "adamw_torch_fused"}, r"`optimizer: adamw_torch_fused` \(the checkpoint: adamw_torch\)"),
    ({"optimizer": "sgd"}, r"`optimizer: sgd` \(the checkpoint: adamw_torch\)"),
    ({"optimizer": "muon"}, r"`optimizer: MuonOptimizerFactory` \(the checkpoint: adamw_torch\)"),
    ({"embedding_lr": 1e-5}, r"`embedding_lr: 1e-05` \(the checkpoint: None\)"),
    ({"loraplus_lr_ratio": 16}, r"`loraplus_lr_ratio: 16.0` \(the checkpoint: None\)"),
    ({"lora_alpha": 64}, r"`lora_alpha: 64` \(the checkpoint: 8\)"),
    ({"lora_r": 8}, r"`lora_r: 8` \(the checkpoint: 4\)"),
    ({"peft_use_rslora": True}, r"`peft_use_rslora: True` \(the checkpoint: None\)"),
    (
        {"lora_target_linear": None, "lora_target_modules": ["q_proj"]},
        r"`lora_target_modules: \['q_proj'\]` \(the checkpoint: \['down_proj', .*\]\)",
    ),
    (dict.fromkeys(LORA), r"`adapter: None` \(the checkpoint: lora\)"),
]


def test_what_the_checkpoint_would_bring_back_is_refused_by_name(run, adapter_saved):
    config, folder = adapter_saved
    for changes, message in RESTORED:
        with pytest.raises(ValueError, match="checkpoint-2 with other settings: `") as error:
            run({**config, **changes, "resume_from_checkpoint": f"{folder}/checkpoint-2"})
        assert error.match(message)


def test_what_has_an_effect_on_resume_may_change(run, adapter_saved, tmp_path):
    config, folder = adapter_saved
    resume = {"max_steps": 6, "resume_from_checkpoint": str(tmp_path / "kept/checkpoint-2")}
    shutil.copytree(f"{folder}/checkpoint-2", resume["resume_from_checkpoint"])
    rates = [round(rate / 1e-3, 6) for rate in column(run({**config, **resume}), "learning_rate")]
    assert rates[2:] == [0.5, 0.5, 0.333333, 0.166667]  # the first is of a run of 4 steps, the others of 6
    more_epochs = run({**config, **resume, "max_steps": None, "num_epochs": 2})
    assert more_epochs.state.global_step == 12
    warmed_up = column(run({**config, **resume, "warmup_steps": 10}), "learning_rate")
    assert warmed_up[3:] == pytest.approx([3e-4, 4e-4, 5e-4])
    plain = column(run({**config, **resume}), "loss")
    clipped = column(run({**config, **resume, "max_grad_norm": 1e-4}), "loss")
    assert clipped[:3] == plain[:3] and clipped[3:] != plain[3:]


def test_a_schedule_of_fixed_length_keeps_its_length(run, paired_config):
    config = {**paired_config, **SAVING, "lr_scheduler": "rex"}
    folder = run(config).args.output_dir
    with pytest.raises(ValueError, match=r"`max_steps: 6` \(the checkpoint: 4\)"):
        run({**config, "max_steps": 6, "resume_from_checkpoint": f"{folder}/checkpoint-2"})


def test_an_older_checkpoint_tells_of_its_adapter_only(run, adapter_saved, tmp_path):
    config, folder = adapter_saved
    path = tmp_path / "out/checkpoint-2/trainer_state.json"
    state = json.loads(path.read_text())
    del state["stateful_callbacks"]["RunState"]["attributes"]["restored_settings"]
    path.write_text(json.dumps(state))
    resume = {"resume_from_checkpoint": f"{folder}/checkpoint-2"}
    with pytest.raises(ValueError, match=r"other settings: `lora_alpha: 64` \(the checkpoint: 8\). Set"):
        run({**config, **resume, "lora_alpha": 64})
    assert len(column(run({**config, **resume, "learning_rate": 0.01}), "loss")) == 4


def test_the_best_value_is_of_the_same_metric(run, evaluated, tmp_path):
    config = {**evaluated, "max_steps": 2}
    run(config)
    resume = {"resume_from_checkpoint": str(tmp_path / "out/checkpoint-1")}
    with pytest.raises(ValueError, match=r"`metric_for_best_model: eval_loss` \(the checkpoint: eval_dom"):
        run({**config, **resume, "metric_for_best_model": "eval_loss"})


def test_a_checkpoint_of_another_rl_is_refused(run, paired_config):
    folder = run({**paired_config, **SAVING, "rl": "dpo"}).args.output_dir
    with pytest.raises(ValueError, match="checkpoint-4`: not written by `rl: aot`"):
        run({**paired_config, **SAVING, "resume_from_checkpoint": f"{folder}/checkpoint-4"})


@pytest.mark.parametrize("rest", [None, '{"global_step": 4, "log_hist'])
def test_a_checkpoint_that_is_not_complete(run, saved, tmp_path, rest, caplog):
    config, folder = saved
    state = tmp_path / "out/checkpoint-4/trainer_state.json"
    state.unlink() if rest is None else state.write_text(rest)
    with pytest.raises(ValueError, match=r"checkpoint-4`: it has no complete .*use .*/checkpoint-2"):
        run({**config, "resume_from_checkpoint": f"{folder}/checkpoint-4"})
    assert get_last_checkpoint(folder).endswith("checkpoint-4")  # which transformers would have taken
    trainer = run({**config, "auto_resume_from_checkpoints": True})
    assert "checkpoint-4 was not written to its end" in caplog.text
    assert len(column(trainer, "loss")) == 4  # 2 of them from checkpoint-2


def test_no_complete_checkpoint_at_all(run, saved, tmp_path, caplog):
    config, folder = saved
    for state in (tmp_path / "out").glob("checkpoint-*/trainer_state.json"):
        state.unlink()
    with pytest.raises(ValueError, match="no other is complete either; start anew"):
        run({**config, "resume_from_checkpoint": f"{folder}/checkpoint-4"})
    trainer = run({**config, "auto_resume_from_checkpoints": True})
    assert "starting anew" in caplog.text
    assert len(column(trainer, "loss")) == 4


def test_the_count_of_one_label_steps_goes_on(run, unpaired_config, tmp_path):
    rows = unpair(make_pairs(40), only=False) + unpair(make_pairs(1), only=True)
    config = with_rows(unpaired_config, tmp_path / "rows.jsonl", rows)
    config |= {**SAVING, "micro_batch_size": 2, "max_steps": 8}
    expected = column(run(config), "dominance/one_label_steps")
    assert expected[-1] >= 7
    resumed = run({**config, "resume_from_checkpoint": str(tmp_path / "out/checkpoint-6")})
    assert column(resumed, "dominance/one_label_steps") == expected


def test_another_number_of_rows_is_refused(run, saved, tmp_path):
    config, folder = saved
    config = with_rows(config, tmp_path / "more.jsonl", make_pairs(60))
    with pytest.raises(ValueError, match=r"`rows of datasets: 60` \(the checkpoint: 48\)"):
        run({**config, "resume_from_checkpoint": f"{folder}/checkpoint-4"})


def test_a_checkpoint_without_the_optimizer(run, paired_config):
    config = {**paired_config, **SAVING, "save_only_model": True}
    folder = run(config).args.output_dir
    with pytest.raises(ValueError, match="checkpoint-2`: it holds no state of the optimizer"):
        run({**config, "resume_from_checkpoint": f"{folder}/checkpoint-2"})


def test_a_copy_of_a_checkpoint_is_not_one_of_the_run(run, saved, tmp_path):
    config, _ = saved
    shutil.copytree(tmp_path / "out/checkpoint-2", tmp_path / "out/checkpoint-9-backup")
    trainer = run({**config, "auto_resume_from_checkpoints": True, "max_steps": 6})
    assert len(column(trainer, "loss")) == 6


@pytest.fixture
def stopping(evaluated):
    """Saves every other step, and stops when the violation has not fallen for 5."""
    return {**evaluated, **SAVING, "max_steps": 12, "early_stopping_patience": 5}


def test_early_stopping_goes_on_counting(run, stopping, tmp_path):
    whole = run(stopping)
    stopped = whole.state.global_step
    assert 5 < stopped < 12
    resumed = run({**stopping, "resume_from_checkpoint": str(tmp_path / "out/checkpoint-4")})
    assert resumed.state.global_step == stopped
    assert column(resumed, "loss") == column(whole, "loss")


def test_early_stopping_that_was_not_there_before(run, stopping, tmp_path):
    run({**stopping, "early_stopping_patience": None, "max_steps": 2})
    with pytest.raises(ValueError, match="trained without early_stopping_patience; remove that"):
        run({**stopping, "resume_from_checkpoint": str(tmp_path / "out/checkpoint-2")})


def test_the_name_under_which_older_checkpoints_keep_the_run_is_known(run, saved, tmp_path):
    config, folder = saved
    path = tmp_path / "out/checkpoint-4/trainer_state.json"
    state = json.loads(path.read_text())
    callbacks = state["stateful_callbacks"]
    attributes = callbacks["RunState"]["attributes"]
    assert set(attributes) == {"run_settings", "restored_settings", "one_label_steps"}
    del attributes["restored_settings"]  # as of older checkpoints
    callbacks["AOTSetup"] = callbacks.pop("RunState")
    del callbacks["AOTSetup"]["attributes"]["run_settings"]["aot_penalty"]  # a key that came later
    path.write_text(json.dumps(state))
    resume = {"resume_from_checkpoint": f"{folder}/checkpoint-4", "max_steps": 6}
    assert len(column(run({**config, **resume}), "loss")) == 6
    with pytest.raises(ValueError, match=r"`seed: 7` \(the checkpoint: 42\)"):
        run({**config, **resume, "seed": 7})
