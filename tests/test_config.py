"""What a YAML may say, and what it is told when it says something else."""

import logging

import pytest

from axolotl_aot.checks import DEFAULT_BETA
from axolotl_aot.config import active_rl, settings, translate
from axolotl_aot.errors import AOTConfigError

AOT = {"rl": "aot"}
UNPAIRED = {"rl": "aot_unpaired"}
FSDP = {"fsdp_config": {"state_dict_type": "FULL_STATE_DICT"}}
QLORA = {"adapter": "qlora", "load_in_4bit": True}


@pytest.mark.parametrize(
    ("rl", "axolotl_rl", "trainer"),
    [
        ("aot", "dpo", "axolotl_aot.training.trainers.AOTTrainer"),
        ("aot_unpaired", "kto", "axolotl_aot.training.trainers.AOTUnpairedTrainer"),
    ],
)
def test_translation(rl, axolotl_rl, trainer):
    cfg = {"rl": rl}
    assert active_rl(cfg) is None
    assert translate(cfg) == rl
    assert (cfg["rl"], cfg["trainer_cls"], cfg["rl_beta"]) == (axolotl_rl, trainer, DEFAULT_BETA)
    assert active_rl(cfg) == rl
    again = dict(cfg)
    assert translate(cfg) == rl  # as on a Ray worker
    assert cfg == again


@pytest.mark.parametrize("cfg", [{}, {"rl": "dpo"}, {"rl": None}, {"rl": "kto", "trainer_cls": "a.B"}])
def test_another_rl_is_left_alone(cfg):
    before = dict(cfg)
    assert translate(cfg) is None
    assert cfg == before


def test_settings_have_the_documented_defaults():
    assert settings({}).model_dump() == {
        "aot_penalty": "logistic",
        "aot_entropy": 0.0,
        "aot_anchor": 0.0,
        "aot_doubt_labels": False,
        "aot_scope": "effective_batch",
        "aot_dominance": "first",
        "aot_sort": "hard",
        "aot_soft_sort_strength": None,
        "aot_label_smoothing": 0.0,
        "aot_stratify": True,
        "aot_padding_free": None,
        "aot_max_tokens_per_micro_batch": None,
        "aot_report": True,
        "aot_report_samples": None,
    }
    assert settings({"aot_penalty": None}).aot_penalty == "logistic"  # an empty key in the YAML


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        ({**AOT, "aot_penaltyy": "logistic"}, "`aot_penaltyy` is not a key.*'aot_penalty'"),
        ({**AOT, "aot_xyz": 1}, "`aot_xyz` is not a key of axolotl-aot. Known: aot_penalty"),
        ({**AOT, "aot_penalty": "squared-hinge"}, "`aot_penalty: squared-hinge`.*'squared_hinge'"),
        ({**AOT, "aot_penalty": "hinge"}, "`aot_penalty: hinge`.*'logistic'"),
        ({**AOT, "aot_scope": "batch"}, "`aot_scope: batch`.*'micro_batch'"),
        ({**AOT, "aot_dominance": "second_order"}, "`aot_dominance: second_order`.*'first' or 'second'"),
        ({**AOT, "aot_sort": "sorted"}, "`aot_sort: sorted`.*'hard' or 'soft'"),
        ({**AOT, "aot_soft_sort_strength": 0}, "`aot_soft_sort_strength: 0`.*greater than 0"),
        ({**AOT, "aot_soft_sort_strength": "much"}, "`aot_soft_sort_strength: much`.*number"),
        ({**AOT, "aot_label_smoothing": 0.5}, "`aot_label_smoothing: 0.5`.*less than 0.5"),
        ({**AOT, "aot_label_smoothing": -0.1}, "`aot_label_smoothing: -0.1`.*greater than or equal to 0"),
        (
            {**AOT, "aot_label_smoothing": 0.1, "aot_penalty": "least_squares"},
            "`aot_label_smoothing: 0.1` with `aot_penalty: least_squares`.*logistic only",
        ),
        ({**AOT, "aot_doubt_labels": True}, "`aot_doubt_labels: true` with `aot_anchor: 0`.*`aot_anchor: 1`"),
        ({**AOT, "aot_report_samples": -1}, "`aot_report_samples: -1`.*greater than or equal to 0"),
        ({**AOT, "aot_report_samples": "few"}, "`aot_report_samples: few`.*integer"),
        (
            {**AOT, "aot_report_samples": 4, "aot_report": False, "val_set_size": 0.1},
            "`aot_report_samples: 4` with `aot_report: false`.*remove one",
        ),
        (
            {**AOT, "aot_report_samples": 4},
            "`aot_report_samples: 4` needs an evaluation set.*val_set_size or test_datasets",
        ),
        ({"rl": "aot_pair"}, "`rl: aot_pair`.*`rl: aot` or `rl: aot_unpaired`.*'aot_unpaired'"),
        ({"rl": "aot_unpared"}, "`rl: aot_unpared`.*'aot_unpaired'"),
        ({"rl": "AOT"}, "`rl: AOT`.*'aot'"),
        ({"rl": "dpo", "aot_penalty": "logistic"}, "`aot_penalty` with `rl: dpo`.*need `rl: aot`"),
        ({"aot_scope": "micro_batch"}, "`aot_scope` with `rl: None`"),
        ({**AOT, "rl_beta": 0}, "`rl_beta: 0`: must be a number above 0"),
        ({**AOT, "rl_beta": -1.5}, "`rl_beta: -1.5`"),
        ({**AOT, "rl_beta": "high"}, "`rl_beta: high`"),
        ({**AOT, "rl_beta": float("inf")}, "`rl_beta: inf`"),
        ({**AOT, "rl_beta": True}, "`rl_beta: True`"),
        ({**AOT, "pad_to_multiple_of": 64}, "`pad_to_multiple_of: 64`.*remove it"),
        ({**AOT, "trl": {"beta": 0.1}}, "`trl: beta: 0.1`: set rl_beta"),
        ({**AOT, "dpo_beta": 0.1}, "`dpo_beta: 0.1`.*use rl_beta"),
        ({**AOT, "dpo_loss_type": ["sigmoid"]}, r"`dpo_loss_type: \['sigmoid'\]`.*aot_penalty"),
        ({**AOT, "dpo_loss_weights": [1.0]}, r"`dpo_loss_weights: \[1.0\]`"),
        ({**AOT, "dpo_use_weighting": True}, "`dpo_use_weighting: True` has no effect with `rl: aot`"),
        ({**AOT, "dpo_use_liger_kernel": True}, "`dpo_use_liger_kernel: True`"),
        ({**AOT, "dpo_padding_free": True}, "`dpo_padding_free: True`"),
        ({**AOT, "dpo_label_smoothing": 0.1}, "`dpo_label_smoothing: 0.1`.*use aot_label_smoothing"),
        ({**AOT, "kto_desirable_weight": 1.0}, "`kto_desirable_weight: 1.0`.*same mass"),
        ({**UNPAIRED, "kto_undesirable_weight": 0.2}, "`kto_undesirable_weight: 0.2`.*same mass"),
        ({**AOT, "simpo_gamma": 0.5}, "`simpo_gamma: 0.5`.*remove it"),
        ({**AOT, "trainer_cls": "mine.Trainer"}, "`trainer_cls: mine.Trainer` with `rl: aot`.*remove"),
        ({**AOT, "context_parallel_size": 2}, "`context_parallel_size: 2`.*data parallelism"),
        ({**AOT, "sequence_parallel_degree": 4}, "`sequence_parallel_degree: 4`"),
        ({**UNPAIRED, "tensor_parallel_size": 2}, "`tensor_parallel_size: 2`"),
        ({**AOT, "context_parallel_size": "2"}, "`context_parallel_size: 2`"),
        ({**AOT, "expert_parallel_size": 2}, "`expert_parallel_size: 2`.*FSDP"),
        ({**AOT, "fsdp_version": 2, **FSDP, **QLORA}, "`load_in_4bit: true` with FSDP.*DeepSpeed"),
        ({**AOT, "fsdp": ["full_shard"], "load_in_8bit": True}, "`load_in_8bit: true` with FSDP.*DDP"),
        ({**UNPAIRED, "fsdp_config": {"fsdp_version": 2}, **QLORA}, "`load_in_4bit: true`.*DeepSpeed"),
        (
            {**AOT, "aot_max_tokens_per_micro_batch": 4096, "aot_scope": "micro_batch"},
            "`aot_max_tokens_per_micro_batch: 4096` with `aot_scope: micro_batch`",
        ),
        ({**AOT, "aot_max_tokens_per_micro_batch": 0}, "`aot_max_tokens_per_micro_batch: 0`.*greater than 0"),
        ({**AOT, "aot_padding_free": "yess"}, "`aot_padding_free: yess`"),
        (
            {**AOT, "accelerator_config": {"split_batches": True}},
            "`accelerator_config: split_batches: True`.*default is false",
        ),
        (
            {**AOT, "accelerator_config": {"even_batches": False}},
            "`accelerator_config: even_batches: False`.*default is true",
        ),
        ({**AOT, "auto_find_batch_size": True}, "`auto_find_batch_size: True`.*micro_batch_size"),
        ({**AOT, "group_by_length": True}, "`group_by_length: True`.*remove it"),
        ({**AOT, "neftune_noise_alpha": 5}, "`neftune_noise_alpha: 5`.*supervised fine-tuning only"),
        ({**UNPAIRED, "dataloader_drop_last": True}, "`dataloader_drop_last: True`.*remove it"),
        ({**AOT, "curriculum_sampling": True}, "`curriculum_sampling: True`.*remove it"),
        ({**AOT, "early_stopping_patience": 3}, "`early_stopping_patience: 3` needs an evaluation set"),
        ({**AOT, "metric_for_best_model": "eval_loss"}, "`metric_for_best_model: eval_loss` needs an eval"),
        (
            {
                **AOT,
                "val_set_size": 0.1,
                "metric_for_best_model": "eval_dominance/violation",
                "greater_is_better": True,
            },
            "`greater_is_better: true` with `metric_for_best_model: eval_dominance/violation`.*false",
        ),
        ({**UNPAIRED, "remove_unused_columns": True}, "needs `remove_unused_columns: False`"),
    ],
)
def test_errors_name_the_key_the_value_and_the_remedy(cfg, message):
    with pytest.raises(AOTConfigError, match=message):
        translate(cfg)


@pytest.mark.parametrize(
    ("rl", "more"),
    [
        ("aot", {"dpo_use_weighting": False, "context_parallel_size": 1, "trl": {"beta": None}}),
        ("aot_unpaired", {"remove_unused_columns": False, "kto_desirable_weight": None}),
        ("aot", {"rl_beta": 1, "aot_label_smoothing": 0.49}),
        ("aot", {**FSDP, "adapter": "lora"}),
        ("aot", {**FSDP, "precompute_ref_log_probs": True}),
        ("aot", {"fsdp_version": 2, **FSDP, "adapter": "lora", "precompute_ref_log_probs": True}),
        ("aot", {"accelerator_config": {"even_batches": True, "split_batches": None}}),
        (
            "aot",
            {"metric_for_best_model": "eval_rewards/margins", "val_set_size": 1, "greater_is_better": True},
        ),
    ],
)
def test_harmless_values_pass(rl, more):
    assert translate({"rl": rl, **more}) == rl


def test_a_strength_without_the_soft_sort_is_warned_of(caplog):
    with caplog.at_level(logging.WARNING):
        settings({"aot_soft_sort_strength": 0.5, "aot_sort": "soft"})
        settings({"aot_sort": "soft"})
        settings({"aot_soft_sort_strength": None})
        assert not caplog.records
        settings({"aot_soft_sort_strength": 0.5})
    assert "no effect without `aot_sort: soft`" in caplog.text


def test_a_number_that_yaml_reads_as_a_string():
    cfg = {"rl": "aot", "rl_beta": "1e-2"}
    translate(cfg)
    assert cfg["rl_beta"] == 0.01


@pytest.mark.parametrize(
    ("key", "off", "on"),
    [("lora_dropout", 0.0, 0.05), ("pad_to_sequence_len", False, True), ("eval_max_new_tokens", None, 128)],
)
def test_keys_of_axolotls_examples_that_nothing_reads_are_warned_of(caplog, key, off, on):
    with caplog.at_level(logging.WARNING):
        translate({"rl": "aot", key: off})
        assert not caplog.records
        translate({"rl": "aot", key: on})
    assert f"{key} has no effect" in caplog.text


def test_inference_which_takes_rl_out_of_the_yaml_is_not_refused():
    assert translate({"rl": None, "inference": True, "aot_penalty": "logistic"}) is None


@pytest.mark.parametrize(
    ("metric", "greater_is_better"),
    [
        ("eval_dominance/violation", False),
        ("dominance/violation_rate", False),
        ("eval_rewards/margins", None),  # transformers' own rule
    ],
)
def test_less_violation_is_better(metric, greater_is_better):
    cfg = {**AOT, "metric_for_best_model": metric, "test_datasets": [{"path": "pairs.jsonl"}]}
    translate(cfg)
    assert cfg.get("greater_is_better") is greater_is_better
