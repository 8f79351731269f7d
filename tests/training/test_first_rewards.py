"""Policy and reference are the same model before step 1, whatever makes the embeddings longer."""

from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.conftest import LORA, QLORA
from tests.helpers import column, steps
from tests.marks import half_slow, slow_except
from tests.tiny import make_pairs, with_rows, with_test_rows

VOCABULARY = 300  # of the tiny model
TRAINED_EMBEDDINGS = {"lora_modules_to_save": ["embed_tokens", "lm_head"]}
TOKENS = {"tokens": ["<think>", "</think>"]}
# what is added: keys, whether axolotl then wants the embeddings trained, and the rows that there are then
LONGER = {
    "tokens": (TOKENS, True, 302),
    "pad": ({"special_tokens": {"pad_token": "<new pad>"}}, False, 301),
    "32x": ({"resize_token_embeddings_to_32x": True}, False, 320),
    "eos": ({"special_tokens": {"pad_token": "<pad>", "eos_token": "<|end of turn|>"}}, True, 301),
    "additional": ({"special_tokens": {"additional_special_tokens": ["<a>", "<b>", "<c>"]}}, False, 303),
    "not by the mean": ({**TOKENS, "mean_resizing_embeddings": False}, True, 302),
    "tokens and 32x": ({**TOKENS, "resize_token_embeddings_to_32x": True}, True, 320),
    "rows of tokens": (
        {"special_tokens": {"additional_special_tokens": ["<a>"]}, "peft_trainable_token_indices": [300, 5]},
        False,
        301,
    ),
}
KINDS = {"full": {}, "lora": LORA, "qlora": QLORA}


RL = ("aot", "aot_unpaired")
QUICK = ("tokens", "pad", "32x", "eos")
CASES = [
    *half_slow(RL, KINDS, QUICK),
    *(
        pytest.param(rl, kind, longer, marks=pytest.mark.slow)
        for rl in RL
        for kind in KINDS
        for longer in LONGER
        # rows of tokens are trained apart by an adapter only
        if longer not in QUICK and (kind, longer) != ("full", "rows of tokens")
    ),
]


@pytest.fixture
def config(request, paired_config, unpaired_config):
    return {"aot": paired_config, "aot_unpaired": unpaired_config}[request.param]


def of_kind(kind: str, trains_embeddings: bool = True) -> dict:
    return {**KINDS[kind], **(TRAINED_EMBEDDINGS if trains_embeddings and kind != "full" else {})}


def first_rewards(trainer) -> list[float]:
    trainer.train()
    return [steps(trainer)[0][f"rewards/{name}"] for name in ("chosen", "rejected", "margins")]


@pytest.mark.parametrize(("config", "kind", "longer"), CASES, indirect=["config"])
def test_first_rewards_are_exactly_0(build, config, kind, longer):
    keys, trains_embeddings, rows = LONGER[longer]
    more = {"max_steps": 1, "gradient_accumulation_steps": 2}
    trainer = build({**config, **of_kind(kind, trains_embeddings), **keys, **more})
    assert trainer.model.get_input_embeddings().weight.shape[0] == rows > VOCABULARY
    assert first_rewards(trainer) == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("kind", slow_except(["full"], KINDS))
@pytest.mark.parametrize(
    "more",
    slow_except(
        [{"gradient_checkpointing": True}],
        [
            {"gradient_checkpointing": True},
            {"micro_batch_size": 1, "gradient_accumulation_steps": 8},
            {"attn_implementation": "eager", "aot_padding_free": False},
            {"aot_scope": "micro_batch"},
            {"aot_max_tokens_per_micro_batch": 100},
        ],
    ),
    ids=lambda more: next(iter(more)),
)
def test_however_the_step_is_computed(build, paired_config, kind, more):
    config = {**paired_config, **of_kind(kind), **TOKENS, "max_steps": 1, **more}
    assert first_rewards(build(config)) == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("kind", slow_except(["full"], KINDS))
def test_a_precomputed_reference(build, paired_config, tmp_path, kind):
    more = {"precompute_ref_log_probs": True, "dataset_prepared_path": str(tmp_path / "prepared")}
    config = {**paired_config, **of_kind(kind), **TOKENS, "max_steps": 1, **more}
    # scored in other batches, whose sums are rounded otherwise
    assert first_rewards(build(config)) == pytest.approx([0, 0, 0], abs=1e-5)


def test_the_new_tokens_in_the_data(build, paired_config, tmp_path):
    rows = [{**pair, "chosen": f" <think>{pair['chosen']}</think>"} for pair in make_pairs(16)]
    config = with_rows(paired_config, tmp_path / "rows.jsonl", rows)
    trainer = build({**config, **TOKENS, "mean_resizing_embeddings": False, "max_steps": 1})
    assert 301 in trainer.train_dataset[0]["chosen_ids"]
    assert first_rewards(trainer) == [0.0, 0.0, 0.0]


@pytest.fixture
def without_head(tiny_model, tmp_path) -> Path:
    """The tiny model's folder, without the output embeddings' weights."""
    folder = tmp_path / "without head"
    folder.mkdir()
    for file in tiny_model.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_weights_that_the_files_lack(build, paired_config, without_head):
    trainer = build({**paired_config, "base_model": str(without_head), "max_steps": 1})
    assert first_rewards(trainer) == [0.0, 0.0, 0.0]


@pytest.mark.slow
def test_two_processes(processes, paired_config, tmp_path):
    # DDP gives the policy of the first process to all of them, and leaves the reference as it was loaded
    plugins = [*paired_config["plugins"], "tests.on_cpu.OnCPU"]
    more = {"plugins": plugins, "max_steps": 1, "micro_batch_size": 2, "gradient_accumulation_steps": 2}
    run = processes.train({**paired_config, **TOKENS, **more}, tmp_path / "two", 2)
    for (step,) in run.steps:
        assert (step["rewards/chosen"], step["rewards/rejected"]) == (0, 0)


# --- The same reference later -----------------------------------------------------------------------


def new_rows(model) -> list[torch.Tensor]:
    """Of the input and the output embeddings of a base model that may have an adapter."""
    ends = model.get_input_embeddings(), model.get_output_embeddings()
    originals = [getattr(end, "original_module", end) for end in ends]
    return [end.weight.detach()[VOCABULARY:].clone() for end in originals]


def test_runs_with_other_seeds_have_the_same_reference(build, paired_config):
    config = {**paired_config, **TOKENS, "mean_resizing_embeddings": False}
    first, second = (new_rows(build({**config, "seed": seed}).ref_model) for seed in (1, 2))
    for one, other in zip(first, second, strict=True):
        assert len(one) == 2 and one.equal(other) and not one[0].equal(one[1])


@pytest.mark.parametrize("kind", slow_except(["lora", "full"], KINDS))
def test_a_resumed_run_ends_as_an_undisturbed_one(run, paired_config, tmp_path, kind):
    keys = {"mean_resizing_embeddings": False, "save_strategy": "steps", "save_steps": 2}
    config = {**paired_config, **of_kind(kind), **TOKENS, **keys}
    weights = "model.safetensors" if kind == "full" else "adapter_model.safetensors"
    undisturbed = run({**config, "output_dir": str(tmp_path / "undisturbed")})
    resumed = run({**config, "resume_from_checkpoint": str(tmp_path / "undisturbed/checkpoint-2")})
    for name in ("loss", "grad_norm", "rewards/chosen", "logps/rejected", "dominance/violation"):
        assert column(undisturbed, name) == column(resumed, name)
    expected, actual = (load_file(tmp_path / out / weights) for out in ("undisturbed", "out"))
    assert expected.keys() == actual.keys()
    for name, tensor in expected.items():
        assert tensor.equal(actual[name]), name


@pytest.mark.parametrize("kind", slow_except(["lora"], KINDS))
def test_evaluation_and_report_have_trainings_reference(
    run, paired_config, tmp_path, monkeypatch, kind, arguments
):
    from axolotl.cli.evaluate import do_cli as evaluate

    from axolotl_aot.report import comparison
    from axolotl_aot.scoring.reference_cache import sequences_of
    from axolotl_aot.scoring.scorer import collate

    rows = [{**pair, "chosen": f" <think>{pair['chosen']}"} for pair in make_pairs(12, seed=5)]
    config = with_test_rows(paired_config, tmp_path / "eval.jsonl", rows)
    config |= {**of_kind(kind), **TOKENS, "mean_resizing_embeddings": False, "eval_steps": 4, "max_steps": 4}
    trainer = run(config)
    sequences = sequences_of(trainer.eval_dataset, ["chosen_ids", "rejected_ids"])
    batch = collate(list(sequences.values()), trainer.accelerator.device)
    expected = trainer.reference.score(batch).tolist()
    in_training = [entry for entry in trainer.state.log_history if "eval_loss" in entry][-1]

    path = tmp_path / "run.yml"
    path.write_text(yaml.safe_dump(config))
    evaluate(str(path))
    summary = (Path(config["output_dir"]) / "eval_summary.csv").read_text()
    (line,) = [line for line in summary.splitlines() if line.startswith("loss,")]
    tolerance = 1e-2 if kind == "qlora" else 1e-5
    assert float(line.split(",")[-1]) == pytest.approx(in_training["eval_loss"], rel=tolerance)

    seen = []
    score_models = comparison.score_models

    def watched(*args):
        seen.append(score_models(*args))
        return dict(seen[-1])

    monkeypatch.setattr(comparison, "score_models", watched)
    comparison.make_report(path)
    (scores,) = seen
    found = [scores[comparison.REFERENCE][key] for key in sequences]
    # bitsandbytes computes otherwise where nothing is trained
    assert found == pytest.approx(expected, rel=1e-3 if kind == "qlora" else 1e-6)


@pytest.fixture
def arguments(monkeypatch):
    # the commands parse sys.argv, which here is pytest's
    monkeypatch.setattr("sys.argv", ["axolotl"])


# --- Where they differ all the same -----------------------------------------------------------------

MODEL = "a reference that was not loaded as the policy was"
ADAPTER = "an adapter that does not begin as the base model"
FILE = "a file of another model's"


@pytest.mark.parametrize(
    ("kind", "more", "causes"),
    [
        ("full", {}, {MODEL}),
        ("lora", {}, {ADAPTER}),
        ("full", {"precompute_ref_log_probs": True}, {MODEL, FILE}),
        ("lora", {"precompute_ref_log_probs": True}, {ADAPTER, FILE}),
    ],
    ids=["full", "lora", "full, from a file", "lora, from a file"],
)
def test_the_message_names_the_causes_that_fit(build, paired_config, tmp_path, kind, more, causes):
    more = {"dataset_prepared_path": str(tmp_path / "prepared"), **more}
    trainer = build({**paired_config, **KINDS[kind], **more})
    with torch.no_grad():
        for name, parameter in trainer.model.named_parameters():
            if "lora_B" in name or name == "lm_head.weight":
                parameter.add_(torch.randn_like(parameter))
    with pytest.raises(RuntimeError, match="policy and reference differ before any training") as error:
        trainer.train()
    said = {cause for cause in (MODEL, ADAPTER, FILE) if cause in str(error.value)}
    assert said == causes and ("adapter" in str(error.value)) == (ADAPTER in causes)


def test_the_base_model_itself_is_not_changed(build, paired_config, tiny_model):
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    reference = build({**paired_config, **TOKENS}).ref_model
    assert reference.get_output_embeddings().weight[:VOCABULARY].equal(base.get_output_embeddings().weight)
