"""What cannot be the start of a run is refused by name."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from axolotl_aot.errors import AOTConfigError
from axolotl_aot.training.start_adapter import start_from
from tests.adapters import LINEAR, make_adapter
from tests.conftest import LORA

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


@pytest.fixture
def start(tiny_model, tmp_path) -> Path:
    return make_adapter(tmp_path / "start", tiny_model)


def policy(base, **settings):
    """What TRL makes of the keys of a YAML."""
    settings = {"r": 4, "lora_alpha": 8, "target_modules": LINEAR, "task_type": "CAUSAL_LM", **settings}
    return get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(**settings))


def refusal(model, folder, output_dir=None) -> str:
    with pytest.raises(AOTConfigError) as error:
        start_from(model, str(folder), output_dir and str(output_dir))
    assert str(folder) in str(error.value)
    return str(error.value)


OTHER_SETTINGS = [
    ({"r": 8}, "`lora_r: 8` (the adapter: 4)"),
    ({"lora_alpha": 16}, "`lora_alpha: 16` (the adapter: 8)"),
    ({"use_rslora": True}, "`peft_use_rslora: True` (the adapter: None)"),
    ({"use_dora": True}, "`peft_use_dora: True` (the adapter: None)"),
    ({"rank_pattern": {"q_proj": 2}}, "`lora_rank_pattern: {'q_proj': 2}` (the adapter: None)"),
    ({"alpha_pattern": {"q_proj": 2}}, "`lora_alpha_pattern: {'q_proj': 2}` (the adapter: None)"),
    ({"layers_to_transform": [1]}, "`peft_layers_to_transform: [1]` (the adapter: None)"),
    ({"modules_to_save": ["lm_head"]}, "`lora_modules_to_save: ['lm_head']` (the adapter: None)"),
    ({"trainable_token_indices": [3]}, "`peft_trainable_token_indices: [3]` (the adapter: None)"),
    ({"target_modules": ["q_proj"]}, "`lora_target_modules: ['q_proj']` (the adapter: ['down_proj', "),
    ({"r": 8, "lora_alpha": 16}, "`lora_r: 8` (the adapter: 4), `lora_alpha: 16` (the adapter: 8)"),
]


@pytest.mark.parametrize(
    ("settings", "words"),
    OTHER_SETTINGS,
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_yaml_that_describes_another_adapter(tiny_model, start, settings, words):
    assert words in refusal(policy(tiny_model, **settings), start)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"bias": "all"}, "`bias: none` (the adapter: all)"),
        ({"lora_bias": True}, "`lora_bias: None` (the adapter: True)"),
        ({"use_dora": True}, "`peft_use_dora: None` (the adapter: True)"),
    ],
    ids=["bias", "lora_bias", "dora"],
)
def test_an_adapter_that_the_yaml_cannot_describe_or_does_not(tiny_model, tmp_path, settings, words):
    assert words in refusal(policy(tiny_model), make_adapter(tmp_path / "other", tiny_model, **settings))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"init_lora_weights": "pissa"}, "`peft_init_lora_weights: pissa`"),
        ({"init_lora_weights": "gaussian"}, "`peft_init_lora_weights: gaussian`"),
        ({"layer_replication": [(0, 2), (1, 2)]}, "`peft_layer_replication: "),
        ({"target_modules": None, "target_parameters": ["mlp.up_proj.weight"]}, "`lora_target_parameters: "),
    ],
    ids=["pissa", "gaussian", "layer_replication", "target_parameters"],
)
def test_a_yaml_that_cannot_start_from_any_adapter(tiny_model, start, settings, words):
    assert words in refusal(policy(tiny_model, **settings), start)


CHANGED_CONFIGS = [
    ({"peft_type": "IA3"}, "PEFT's type IA3"),
    ({"peft_type": None}, "PEFT's type None"),
    ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights, pissa_niter_4, has changed the base"),
    ({"init_lora_weights": "olora"}, "init_lora_weights, olora, has changed the base"),
]


@pytest.mark.parametrize(("changes", "words"), CHANGED_CONFIGS, ids=lambda value: str(value)[:40])
def test_an_adapter_of_another_kind(tiny_model, start, changes, words):
    file = start / CONFIG
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    assert words in refusal(policy(tiny_model), start)


def test_folders_without_an_adapter(tiny_model, start, tmp_path):
    model = policy(tiny_model)
    for folder in (tmp_path / "nowhere", tmp_path, tiny_model, start / WEIGHTS, Path("org/adapter")):
        assert "no adapter there (adapter_config.json)" in refusal(model, folder)
    (start / CONFIG).write_text((start / CONFIG).read_text()[:100])
    assert "adapter_config.json is damaged" in refusal(model, start)


def test_what_the_run_would_write_over(tiny_model, start):
    model = policy(tiny_model)
    for output_dir in (start, start.parent, Path(f"{start}/../start")):
        assert "write over the adapter" in refusal(model, start, output_dir)
    start_from(model, str(start), str(start / "next"))  # a folder within is not the adapter


@pytest.fixture
def changed(start):
    """Change the weights in the folder."""

    def changed(change):
        weights = load_file(start / WEIGHTS)
        change(weights)
        save_file(weights, start / WEIGHTS, metadata={"format": "pt"})
        return start

    return changed


KEY = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda weights: weights.pop(KEY), f"lacks the adapter's weights, by 1, such as {KEY}"),
        (
            lambda weights: weights.update({KEY.replace("layers.1", "layers.2"): weights[KEY].clone()}),
            "holds more than the adapter's weights, by 1, such as base_model.model.model.layers.2",
        ),
        (
            lambda weights: weights.update({KEY: torch.zeros(4, 96)}),
            f"{KEY} has the shape (4, 96), and on this base_model it must have (4, 64)",
        ),
    ],
    ids=["lacks", "more", "shape"],
)
def test_weights_that_do_not_fit(tiny_model, changed, change, words):
    assert words in refusal(policy(tiny_model), changed(change))


def test_files_of_weights_that_cannot_be_read(tiny_model, start):
    (start / WEIGHTS).write_bytes((start / WEIGHTS).read_bytes()[:500])
    assert "cannot be read" in refusal(policy(tiny_model), start)
    (start / WEIGHTS).unlink()
    assert "no weights there" in refusal(policy(tiny_model), start)
    for content in (b"", b"no weights"):
        (start / "adapter_model.bin").write_bytes(content)
        assert "cannot be read" in refusal(policy(tiny_model), start)


def test_an_older_file_of_weights(tiny_model, start):
    torch.save(load_file(start / WEIGHTS), start / "adapter_model.bin")
    (start / WEIGHTS).unlink()
    start_from(policy(tiny_model), str(start), None)


@pytest.fixture
def trained_on(start):
    """Say that the adapter was trained on another base model."""

    def trained_on(base: Path | str) -> None:
        config = json.loads((start / CONFIG).read_text())
        (start / CONFIG).write_text(json.dumps({**config, "base_model_name_or_path": str(base)}))

    return trained_on


def test_another_base_model(tiny_model, start, trained_on, tmp_path, caplog):
    other = tmp_path / "other"
    other.mkdir()
    for kind in ({"vocab_size": 1000}, {"model_type": "qwen2"}):
        (other / "config.json").write_text(
            json.dumps({**json.loads((tiny_model / "config.json").read_text()), **kind})
        )
        trained_on(other)
        ((key, value),) = kind.items()
        message = refusal(policy(tiny_model), start)
        assert f"{key} " in message and f"(the adapter's: {value})" in message and str(other) in message
    (other / "config.json").write_text((tiny_model / "config.json").read_text())
    for base in (other, "org/base"):  # a copy, or one that is not on this machine
        trained_on(base)
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="axolotl_aot"):
            start_from(policy(tiny_model), str(start), None)
        assert f"was trained on {base}, and training starts on {tiny_model}" in caplog.text


def test_through_axolotl(build, load, paired_config, tiny_model, start, tmp_path):
    config = {**paired_config, **LORA, "lora_model_dir": str(start)}
    with pytest.raises(ValueError, match=r"`lora_r: 8` \(the adapter: 4\)"):
        build({**config, "lora_r": 8})
    without_weights = shutil.copytree(tiny_model, tmp_path / "base")  # a large model is not read before
    (without_weights / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"`lora_model_dir: /some/adapter`: no adapter there"):
        build({**config, "base_model": str(without_weights), "lora_model_dir": "/some/adapter"})
    with pytest.raises(ValueError, match="would write over the adapter"):
        build({**config, "output_dir": str(tmp_path / "start")})
    with pytest.raises(ValueError, match=r"`lora_model_dir: .*` has no effect without `adapter`"):
        load({**paired_config, "lora_model_dir": str(start)})
