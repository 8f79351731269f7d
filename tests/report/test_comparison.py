"""`axolotl aot-report`: several trained models scored on one evaluation set, as plain logits have it."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from axolotl_aot.cli import report as command
from tests.by_hand import assert_numbers_of, greedy, logprobs
from tests.tiny import make_pairs, unpair, with_test_rows, write_jsonl

PAIRS = make_pairs(11, seed=5)
SIDES = ("chosen", "rejected")


@pytest.fixture
def adapters(tiny_model, tmp_path) -> dict[str, Path]:
    """Three adapters of different kinds, and a whole model, none of which is the base model."""
    folders = {name: tmp_path / name for name in ("one", "weight", "whole", "weight.b")}
    kinds = {
        "one": LoraConfig(r=4, target_modules=["q_proj", "v_proj"]),
        "weight": LoraConfig(r=2, target_modules=["down_proj"], modules_to_save=["lm_head"]),
        "weight.b": LoraConfig(r=3, target_modules=["down_proj", "q_proj"], use_dora=True),
    }
    for seed, (kind, lora) in enumerate(kinds.items()):
        folder = folders[kind]
        torch.manual_seed(seed)
        base = AutoModelForCausalLM.from_pretrained(tiny_model)
        model = get_peft_model(base, lora)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(std=0.3)
            if "modules_to_save" in name:
                parameter.data.mul_(1.1)
        model.save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    model.model.layers[0].mlp.down_proj.weight.data.mul_(0.5)
    model.save_pretrained(folders["whole"])
    return folders


@pytest.fixture
def expected(adapters, tiny_model) -> dict[str, dict]:
    """By model: of either side, log-probabilities under it and under the base model."""

    def scored(model) -> dict:
        return {side: logprobs(model, tokenizer, PAIRS, side) for side in SIDES}

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    reference = scored(AutoModelForCausalLM.from_pretrained(tiny_model))
    found = {}
    for name, folder in adapters.items():
        if name == "whole":
            model = AutoModelForCausalLM.from_pretrained(folder)
        else:
            model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), folder)
        found[name] = {side: (policy, reference[side]) for side, policy in scored(model).items()}
    return found


@pytest.fixture
def call(tmp_path, axolotl_imported):
    """The command on a config dict; returns click's result, and where it wrote."""

    def call(config: dict, *arguments: object, out: bool = True):
        path = tmp_path / "run.yml"
        path.write_text(yaml.safe_dump(config))
        folder = tmp_path / "report"
        where = ("--out", folder) if out else ()
        result = CliRunner().invoke(command, [str(a) for a in (path, *arguments, *where)])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result, folder

    return call


def numbers_of(folder: Path) -> dict:
    return json.loads((folder / "report.json").read_text())


@pytest.fixture
def paired(paired_config, tmp_path) -> dict:
    return with_test_rows(paired_config, tmp_path / "pairs.jsonl", PAIRS)


@pytest.fixture
def unpaired(unpaired_config, tmp_path) -> dict:
    return with_test_rows(unpaired_config, tmp_path / "answers.jsonl", unpair(PAIRS))


OF_TRAINING = {
    "deepspeed": "zero2.json",
    "resume_from_checkpoint": "checkpoint-8",
    "load_best_model_at_end": True,
    "metric_for_best_model": "eval_loss",
    "precompute_ref_log_probs": True,
}


@pytest.mark.parametrize(
    "keys",
    [
        pytest.param({"rl": "aot"}, marks=pytest.mark.slow),
        {"rl": "aot", **OF_TRAINING, "adapter": "lora", "lora_r": 4, "lora_target_linear": True},
        pytest.param(
            {"rl": "dpo", "dpo_label_smoothing": 0.1, "remove_unused_columns": False}, marks=pytest.mark.slow
        ),
        pytest.param({"rl": "ipo", "plugins": None}, marks=pytest.mark.slow),
        pytest.param({"rl": "aot_unpaired"}, marks=pytest.mark.slow),
        pytest.param(
            {"rl": "kto", "kto_desirable_weight": 1.5, "remove_unused_columns": False}, marks=pytest.mark.slow
        ),
    ],
    ids=["aot", "aot-training-keys", "dpo", "ipo", "aot_unpaired", "kto"],
)
def test_scores_are_those_of_plain_logits(call, paired, unpaired, adapters, expected, tiny_model, keys):
    config = {**(unpaired if keys["rl"] in ("aot_unpaired", "kto") else paired), **keys}
    others = [f"--compare={name}={adapters[name]}" for name in ("weight", "whole", "weight.b")]
    result, folder = call(config, "--adapter", adapters["one"], *others)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == f"Dominance report: {folder / 'report.html'}"
    for model in ("reference", keys["rl"], "weight", "whole", "weight.b"):
        assert f"Scoring {model}: 100%" in result.output
    files = {path.name for path in folder.iterdir()}
    assert {"report.html", "report.json", "comparison.png", "quantiles.png", "log_ratios.png"} <= files
    assert not (Path(config["output_dir"]) / "debug.log").exists()
    numbers = numbers_of(folder)
    # in the order they are named, the YAML's own first
    assert list(numbers["runs"]) == [keys["rl"], "weight", "whole", "weight.b"]
    for name, scores in zip(numbers["runs"], expected.values(), strict=True):
        assert_numbers_of(numbers, scores, name)
        worst = numbers["examples"][name]["chosen"][0]
        rewards = scores["chosen"][0] - scores["chosen"][1]
        assert worst["reward"] == pytest.approx(rewards.min(), abs=2e-4)
        assert worst["completion"] == PAIRS[rewards.argmin()]["chosen"] + "</s>"
    assert_answers_of(numbers, adapters, tiny_model)


def assert_answers_of(numbers: dict, adapters: dict[str, Path], tiny_model: Path) -> None:
    """Eight prompts, answered by each model as a plain loop over its files' weights has it."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokens = {f"<s>{pair['prompt']}": tokenizer(pair["prompt"]).input_ids for pair in PAIRS}
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    before = {}
    for (name, folder), (run, answers) in zip(
        [("one", adapters["one"]), *list(adapters.items())[1:]], numbers["answers"].items(), strict=True
    ):
        assert run == name or name == "one"
        asked = [sample["prompt"] for sample in answers["samples"]]
        assert len(set(asked)) == 8 and answers["why_not"] is None
        if name == "whole":
            model = AutoModelForCausalLM.from_pretrained(folder)
        else:
            model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), folder)
        end, most = [tokenizer.eos_token_id], answers["max_new_tokens"]
        for sample in answers["samples"]:
            prompt = tokens[sample["prompt"]]
            before.setdefault(sample["prompt"], tokenizer.decode(greedy(base, prompt, most, end)))
            assert sample["before"] == before[sample["prompt"]]
            assert sample["after"] == tokenizer.decode(greedy(model, prompt, most, end)), name


@pytest.mark.slow
def test_without_options_it_is_of_what_the_yaml_trained(call, run, paired, lora):
    """And the log of the training, which axolotl's loading of a YAML would empty, stays."""
    config = {**paired, **lora, "eval_steps": 4, "learning_rate": 5e-3, "aot_report": True}
    run(config)
    out = Path(config["output_dir"])
    (out / "debug.log").write_text("of the training")
    result, _ = call(config, out=False)
    assert result.exit_code == 0, result.output
    assert (out / "debug.log").read_text() == "of the training"
    after, alone = numbers_of(out / "dominance"), numbers_of(out / "aot-report")
    assert not (out / "aot-report" / "comparison.png").exists()
    for key in ("rewards", "log_ratios", "log_probabilities"):
        for end in ("upper", "lower"):
            curves = [
                n["runs"]["aot"]["comparisons"][key]["after"]["curves"][end]["quantiles"]
                for n in (after, alone)
            ]
            assert curves[1] == pytest.approx(curves[0], abs=1e-4)


def test_another_data_set(call, paired, adapters, tiny_model, tmp_path):
    others = make_pairs(7, seed=11)
    path = write_jsonl(tmp_path / "others.jsonl", others)
    result, folder = call(paired, "--adapter", adapters["one"], "--data", path, "--samples", 3)
    assert result.exit_code == 0, result.output
    numbers = numbers_of(folder)
    assert numbers["source"] == {"kind": "data", "description": f"{path} (7 pairs)"}
    prompts = {sample["prompt"] for sample in numbers["answers"]["aot"]["samples"]}
    assert len(prompts) == 3 and prompts <= {f"<s>{pair['prompt']}" for pair in others}
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    change = numbers["runs"]["aot"]["changes"]["chosen"]["log_probability_before"]
    assert change == pytest.approx(logprobs(base, tokenizer, others, "chosen").mean(), rel=1e-5)


@pytest.mark.slow
def test_models_that_cannot_answer_are_scored_all_the_same(call, paired, adapters, caplog, monkeypatch):
    def fail(*_):
        raise MemoryError("no room for keys and values")

    monkeypatch.setattr("axolotl_aot.report.compared_answers.greedy_answers", fail)
    result, folder = call(paired, "--adapter", adapters["one"])
    assert result.exit_code == 0, result.output
    why = "reference: MemoryError: no room for keys and values"
    assert numbers_of(folder)["answers"]["aot"]["why_not"] == why
    assert any(why in record.getMessage() for record in caplog.records)
    result, folder = call({**paired, "aot_report_samples": 0}, "--adapter", adapters["one"])
    assert numbers_of(folder)["answers"] == {}


def test_4_bit_weights(call, paired, qlora, adapters, expected):
    """Scored in 4 bits as they were trained: near the float32 scores, and not the same."""
    result, folder = call({**paired, **qlora}, "--adapter", adapters["one"])
    assert result.exit_code == 0, result.output
    change = numbers_of(folder)["runs"]["aot"]["changes"]["chosen"]
    for key, scores in zip(("after", "before"), expected["one"]["chosen"], strict=True):
        value = change[f"log_probability_{key}"]
        assert value == pytest.approx(scores.mean(), rel=0.1) and abs(value - scores.mean()) > 1e-3


def test_the_yaml_has_trained_nothing_yet(call, paired, adapters, caplog):
    result, folder = call(paired, f"--compare=one={adapters['one']}")
    assert result.exit_code == 0, result.output
    assert list(numbers_of(folder)["runs"]) == ["one"]
    assert any("holds nothing trained" in record.getMessage() for record in caplog.records)


def test_an_adapter_of_another_base_model_is_told(call, paired, adapters, caplog):
    path = adapters["one"] / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": "org/other"}))
    call(paired, "--adapter", adapters["one"])
    assert any("was trained on org/other" in record.getMessage() for record in caplog.records)


def test_a_model_that_has_diverged_is_left_out(call, paired, adapters, caplog):
    path = adapters["weight"] / "adapter_model.safetensors"
    save_file({key: matrix * torch.nan for key, matrix in load_file(path).items()}, path)
    result, folder = call(paired, "--adapter", adapters["one"], f"--compare=two={adapters['weight']}")
    assert result.exit_code == 0, result.output
    assert list(numbers_of(folder)["runs"]) == ["aot"]
    assert any("two is left out: 22 log-probabilities are NaN" in r.getMessage() for r in caplog.records)
    result, _ = call(paired, "--adapter", adapters["weight"])
    assert result.exit_code == 1 and "no model has finite log-probabilities" in result.output


@pytest.mark.slow
def test_rows_that_may_have_been_trained_on_are_told(call, paired_config, adapters, caplog):
    """axolotl's own types split off an evaluation set by rules of their own."""
    for rl, told in (("aot", False), ("dpo", True)):
        caplog.clear()
        result, folder = call({**paired_config, "rl": rl, "val_set_size": 0.2}, "--adapter", adapters["one"])
        assert result.exit_code == 0, result.output
        found = "may have been trained on" in numbers_of(folder)["source"]["description"]
        logged = any("may have been trained on" in record.getMessage() for record in caplog.records)
        assert (found, logged) == (told, told)


def test_lora_model_dir_is_where_training_started(call, paired, adapters, expected):
    """What a round has made lies in output_dir."""
    result, folder = call(
        {**paired, "output_dir": str(adapters["one"]), "lora_model_dir": str(adapters["weight"])}
    )
    assert result.exit_code == 0, result.output
    assert_numbers_of(numbers_of(folder), expected["one"], "aot")


def test_only_aots_own_types_read_lora_model_dir(call, paired, adapters, expected):
    """Where output_dir holds nothing; axolotl starts every other RL run with a new adapter."""
    config = {**paired, "lora_model_dir": str(adapters["weight"])}
    result, folder = call({**config, "rl": "aot"})
    assert result.exit_code == 0, result.output
    assert_numbers_of(numbers_of(folder), expected["weight"], "aot")
    result, _ = call({**config, "rl": "dpo"})
    assert result.exit_code == 1 and "no trained adapter or model there" in result.output


@pytest.mark.parametrize(
    ("keys", "arguments", "message"),
    [
        ({"rl": "orpo"}, (), "`rl: orpo`: a report is made of aot, aot_unpaired, dpo, ipo, simpo, kto"),
        ({"rl": None}, (), "`rl: None`: a report is made of"),
        ({}, (), "out: no trained adapter or model there"),
        ({}, ("--adapter", "."), "--adapter .: no trained adapter or model there"),
        ({}, ("--compare", "x=nowhere"), "--compare x=nowhere: no trained adapter or model"),
        ({}, ("--compare", "x"), "'x' must be NAME=DIR"),
        ({}, ("--compare", "a$_$b=ONE"), "'a$_$b' must begin with a letter or digit"),
        ({}, ("--compare", "_a=ONE"), "'_a' must begin with a letter or digit"),
        ({}, ("--compare", "x=ONE", "--compare", "x=ONE"), "'x' is named twice"),
        ({}, ("--compare", "aot=ONE"), "the YAML's own run has this name"),
        ({}, ("--compare", "reference=ONE"), "that is what the base model is called"),
        ({"test_datasets": None}, ("--adapter", "ONE"), "has no evaluation set: set test_datasets"),
        ({"aot_penalty": "squared-hinge"}, ("--adapter", "ONE"), "Did you mean 'squared_hinge'?"),
        ({}, ("--adapter", "ONE", "--data", "nowhere.jsonl"), "nowhere.jsonl"),
    ],
)
def test_mistakes_are_told_without_a_traceback(call, paired, adapters, keys, arguments, message):
    words = [argument.replace("ONE", str(adapters["one"])) for argument in arguments]
    result, folder = call({**paired, **keys}, *words)
    assert result.exit_code in (1, 2)
    assert message in " ".join(result.output.split()), result.output
    assert not folder.exists() or not list(folder.glob("report.*"))


def test_an_adapter_with_biases_is_scored_alone(call, paired, adapters):
    path = adapters["weight"] / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "bias": "lora_only"}))
    result, _ = call(paired, "--adapter", adapters["one"], f"--compare=two={adapters['weight']}")
    assert result.exit_code == 1 and "two" in result.output and "bias: lora_only" in result.output
    result, _ = call(paired, "--adapter", adapters["weight"])
    assert result.exit_code == 0, result.output


def test_an_evaluation_set_of_one_label(call, unpaired, adapters, tmp_path):
    path = write_jsonl(tmp_path / "good.jsonl", unpair(PAIRS, only=True) + unpair(PAIRS[:1], only=False))
    result, _ = call(unpaired, "--adapter", adapters["one"], "--data", path)
    assert result.exit_code == 1
    assert "the evaluation set has 1 rejected answers" in " ".join(result.output.split())
