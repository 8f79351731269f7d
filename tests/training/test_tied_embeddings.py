"""Adapters that train embeddings: what is saved and merged is what was trained, or the run is refused."""

from pathlib import Path

import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.conftest import LORA, QLORA
from tests.helpers import column, steps
from tests.marks import slow_except
from tests.tiny import WORDS, make_tokenizer

# tokens that are in the data: only their input embeddings are trained
IDS = make_tokenizer([" ".join(WORDS)])("red green blue cat dog runs")["input_ids"]
FIRST, SECOND, THIRD = IDS[1:4]
TIE = {"peft_ensure_weight_tying": True}
LEGACY = {"merge_method": "legacy"}
TOKENS = {"tokens": ["<think>", "</think>"]}
PAD = {"special_tokens": {"pad_token": "<new pad>"}}


def copies(*modules: str) -> dict:
    return {"lora_modules_to_save": list(modules)}


def lora_on(*modules: str) -> dict:
    return {"lora_target_modules": ["q_proj", *modules], "lora_target_linear": False}


def rows(which) -> dict:
    return {"peft_trainable_token_indices": which}


@pytest.fixture
def tied(tiny_model, tmp_path) -> Path:
    """The tiny model's folder, but for the output embeddings, which are the input's."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    model.config.tie_word_embeddings = True
    model.tie_weights()
    model.save_pretrained(tmp_path / "tied")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "tied")
    assert "lm_head.weight" not in load_file(tmp_path / "tied/model.safetensors")
    return tmp_path / "tied"


@pytest.fixture
def lora_config(paired_config, tied) -> dict:
    return {
        **paired_config,
        **LORA,
        "base_model": str(tied),
        "max_steps": 3,
        "learning_rate": 1e-2,
    }


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(torch.tensor([IDS])).logits


def reloaded(config: dict, vocabulary: int) -> torch.Tensor:
    """Logits of the saved adapter on the base model, as PEFT loads them."""
    base = AutoModelForCausalLM.from_pretrained(config["base_model"])
    if vocabulary != base.config.vocab_size:
        base.resize_token_embeddings(vocabulary)
    return logits(PeftModel.from_pretrained(base, config["output_dir"]))


def merged(config: dict, path: Path) -> torch.Tensor:
    """Logits of what `axolotl merge-lora` makes of it."""
    from axolotl.cli.merge_lora import do_cli

    path.write_text(yaml.safe_dump({**config, "aot_report": False}))
    do_cli(str(path))
    return logits(AutoModelForCausalLM.from_pretrained(Path(config["output_dir"]) / "merged"))


def assert_saved_and_merged_as_trained(run, config, tmp_path):
    trainer = run(config)
    base = logits(AutoModelForCausalLM.from_pretrained(config["base_model"]))
    trained = logits(trainer.model)
    assert (trained[..., :300] - base).abs().max() > 0.05
    assert first_rewards(trainer) == [0, 0]
    assert torch.allclose(reloaded(config, trained.shape[-1]), trained, atol=1e-5)
    found = merged(config, tmp_path / "merge.yml")
    assert found.shape == trained.shape and torch.allclose(found, trained, atol=1e-4)


def first_rewards(trainer) -> list[float]:
    return [steps(trainer)[0][f"rewards/{name}"] for name in ("chosen", "rejected")]


RIGHT = {
    "tokens": {**copies("embed_tokens", "lm_head"), **TOKENS, **TIE},
    "both": {**copies("lm_head", "embed_tokens"), **TIE},
    "input": {**copies("embed_tokens"), **TIE},
    "output": {**copies("lm_head"), **TIE},
    "by path": {**copies("model.embed_tokens", "lm_head"), **TIE},
    "a new pad token": {**copies("embed_tokens"), **TIE, **PAD},
    "neither, and a new pad token": PAD,
    "another module": copies("norm"),
    "tied and merged by PEFT": {**copies("embed_tokens", "lm_head"), **TOKENS, **TIE, **LEGACY},
    "apart, merged by PEFT": {**copies("embed_tokens", "lm_head"), **TOKENS, **LEGACY},
    "input alone, merged by PEFT": {**copies("embed_tokens"), **LEGACY},
    "output alone, merged by PEFT": {**copies("lm_head"), **LEGACY},
    "rows": {**rows([FIRST, SECOND]), **LEGACY},
    "rows and a new pad token": {**rows([FIRST, SECOND]), **PAD, **LEGACY},
    "the same rows of both": {**rows({"embed_tokens": [FIRST], "lm_head": [FIRST]}), **LEGACY},
}


@pytest.mark.parametrize("case", slow_except(["tokens", "output", "apart, merged by PEFT", "rows"], RIGHT))
def test_one_matrix(run, lora_config, tmp_path, case):
    assert_saved_and_merged_as_trained(run, {**lora_config, **RIGHT[case]}, tmp_path)


# what is refused: the keys, and what the message says of key, value and remedy
TYING = "name `lm_head` in it and set `peft_ensure_weight_tying: true`"
LIST = r"write the tokens as a list without names of modules.*and set `merge_method: legacy`"
OUT = "take the embeddings out of it; .*`lm_head` in `lora_modules_to_save`.*`peft_ensure_weight_tying: true`"
REFUSED = {
    "both": (
        copies("embed_tokens", "lm_head"),
        r"`lora_modules_to_save: \['embed_tokens', 'lm_head'\]`",
        TYING,
    ),
    "tokens": ({**copies("embed_tokens", "lm_head"), **TOKENS}, "`lora_modules_to_save: .*", TYING),
    "input": (copies("embed_tokens"), r"`lora_modules_to_save: \['embed_tokens'\]`", TYING),
    "output": (copies("lm_head"), r"`lora_modules_to_save: \['lm_head'\]`", TYING),
    "by path": (copies("model.embed_tokens"), r"`lora_modules_to_save: \['model.embed_tokens'\]`", TYING),
    "not tied": (
        {**copies("embed_tokens"), "peft_ensure_weight_tying": False},
        r"`lora_modules_to_save: \['embed_tokens'\]`",
        TYING,
    ),
    "LoRA on the output": (lora_on("lm_head"), r"`lora_target_modules: \['lm_head', 'q_proj'\]`", OUT),
    "LoRA on the input": (
        lora_on("embed_tokens"),
        r"`lora_target_modules: \['embed_tokens', 'q_proj'\]`",
        OUT,
    ),
    "LoRA on both, tied": ({**lora_on("embed_tokens", "lm_head"), **TIE}, "`lora_target_modules: .*", OUT),
    "LoRA by a pattern": (
        {"lora_target_modules": ".*(q_proj|lm_head)", "lora_target_linear": False},
        r"`lora_target_modules: \.\*\(q_proj\|lm_head\)`",
        OUT,
    ),
    "LoRA and PEFT's merge": ({**lora_on("lm_head"), **LEGACY}, "`lora_target_modules: .*", OUT),
    "rows": (rows([FIRST, SECOND]), rf"`peft_trainable_token_indices: \[{FIRST}, {SECOND}\]`", LIST),
    "rows of the output": (
        {**rows({"lm_head": [FIRST]}), **LEGACY},
        r"`peft_trainable_token_indices: \{'lm_head': .*",
        LIST,
    ),
    "other rows of each": (
        {**rows({"embed_tokens": [FIRST, SECOND], "lm_head": [FIRST, THIRD]}), **LEGACY},
        r"`peft_trainable_token_indices: \{'embed_tokens': .*",
        LIST,
    ),
}


@pytest.mark.parametrize("case", slow_except(["both", "tokens", "LoRA on the output", "rows"], REFUSED))
def test_what_would_be_merged_wrong_is_refused_before_training(build, lora_config, case):
    keys, value, remedy = REFUSED[case]
    with pytest.raises(ValueError, match=f"{value}.*one matrix.*{remedy}"):
        build({**lora_config, **keys})


@pytest.mark.parametrize("kind", slow_except(["lora"], ["lora", "qlora"]))
def test_a_resumed_run_ends_as_an_undisturbed_one(run, lora_config, tmp_path, kind):
    config = {**lora_config, **{"lora": LORA, "qlora": QLORA}[kind], **RIGHT["tokens"], "max_steps": 4}
    config |= {"save_strategy": "steps", "save_steps": 2}
    undisturbed = run({**config, "output_dir": str(tmp_path / "undisturbed")})
    resumed = run({**config, "resume_from_checkpoint": str(tmp_path / "undisturbed/checkpoint-2")})
    assert first_rewards(undisturbed) == [0, 0]
    assert column(undisturbed, "loss") == column(resumed, "loss")
    expected, actual = (
        load_file(tmp_path / out / "adapter_model.safetensors") for out in ("undisturbed", "out")
    )
    assert expected.keys() == actual.keys()
    for name, tensor in expected.items():
        assert tensor.equal(actual[name]), name
    ends = resumed.model.get_input_embeddings(), resumed.model.get_output_embeddings()
    trained = [end.modules_to_save["default"].weight for end in ends]
    assert trained[0] is trained[1]


def test_full_fine_tuning_needs_none_of_it(run, lora_config):
    trainer = run({**{k: v for k, v in lora_config.items() if k not in LORA}, **TOKENS})
    assert first_rewards(trainer) == [0, 0]
    saved = AutoModelForCausalLM.from_pretrained(trainer.args.output_dir)
    assert torch.allclose(logits(saved), logits(trainer.model), atol=1e-5)


# --- Embeddings of two matrices ---------------------------------------------------------------------

WITHOUT_WARNING = {
    "tokens": {**copies("embed_tokens", "lm_head"), **TOKENS},
    "input": copies("embed_tokens"),
    "LoRA on the output": lora_on("lm_head"),
    "LoRA on the input, merged by PEFT": {**lora_on("embed_tokens"), **LEGACY},
    "rows, merged by PEFT": {**rows([FIRST, SECOND]), **LEGACY},
    "rows of the output, merged by PEFT": {**rows({"lm_head": [FIRST, SECOND]}), **LEGACY},
}


@pytest.mark.parametrize("case", slow_except(["tokens", "rows, merged by PEFT"], WITHOUT_WARNING))
def test_two_matrices(run, lora_config, tiny_model, tmp_path, case, caplog):
    config = {**lora_config, "base_model": str(tiny_model), **WITHOUT_WARNING[case]}
    assert_saved_and_merged_as_trained(run, config, tmp_path)
    assert "trains embeddings" not in caplog.text


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (lora_on("embed_tokens"), "`lora_target_modules: ['embed_tokens', 'q_proj']` trains embeddings"),
        (rows([FIRST]), f"`peft_trainable_token_indices: [{FIRST}]` trains embeddings"),
        (rows({"lm_head": [FIRST]}), "`peft_trainable_token_indices: {'lm_head': "),
    ],
    ids=["LoRA on the input", "rows", "rows of the output"],
)
def test_what_axolotls_own_merge_leaves_out_is_said(build, lora_config, tiny_model, keys, value, caplog):
    build({**lora_config, "base_model": str(tiny_model), **keys})
    assert value in caplog.text and "set `merge_method: legacy`" in caplog.text
