"""The plugin in axolotl: validation, data pipeline, hooks; and what axolotl must go on promising."""

import importlib
import inspect
from pathlib import Path

import pytest

from tests.tiny import make_pairs, write_jsonl

GPU = {"bf16": True, "fp8": False, "tf32": True, "n_gpu": 1, "compute_capability": "sm_90"}


def validate(config: dict):
    from axolotl.cli.config import prepare_plugins
    from axolotl.utils.config import validate_config
    from axolotl.utils.dict import DictDefault

    cfg = DictDefault(config)
    prepare_plugins(cfg)
    return validate_config(cfg, capabilities=GPU, env_capabilities={"torch_version": "2.11.0"})


@pytest.mark.parametrize(("rl", "axolotl_rl"), [("aot", "dpo"), ("aot_unpaired", "kto")])
def test_settings_survive_axolotls_validation(paired_config, rl, axolotl_rl):
    cfg = validate({**paired_config, "rl": rl, "aot_penalty": "squared_hinge", "aot_scope": "micro_batch"})
    assert cfg.rl.value == axolotl_rl
    assert (cfg.aot_penalty, cfg.aot_scope, cfg.aot_sort) == ("squared_hinge", "micro_batch", "hard")


def test_a_wrong_yaml_stops_before_a_model_is_loaded(load, paired_config):
    with pytest.raises(ValueError, match=r"`aot_penlty` is not a key.*'aot_penalty'"):
        load({**paired_config, "base_model": "/nowhere", "aot_penlty": "logistic"})


def test_another_rl_runs_as_without_the_plugin(paired_config):
    plain = {k: v for k, v in paired_config.items() if k != "plugins"}
    with_plugin = validate({**paired_config, "rl": "dpo"})
    without = validate({**plain, "rl": "dpo"})
    assert {k: v for k, v in with_plugin.items() if k != "plugins"} == dict(without)


def test_hooks_leave_another_run_alone(build, paired_config, unpaired_config):
    build({**paired_config, "rl": "dpo"})  # the plugin stays registered in this process
    trainer = build({**{k: v for k, v in unpaired_config.items() if k != "plugins"}, **KTO})
    assert type(trainer).__name__ == "AxolotlKTOTrainer"
    assert trainer.args.loss_type == "kto"
    assert "AOTSetup" not in {type(c).__name__ for c in trainer.callback_handler.callbacks}


KTO = {"rl": "kto", "remove_unused_columns": False}


# --- Dataset types ---------------------------------------------------------------------------------

TURNS = [{"role": "user", "content": "red? "}, {"role": "assistant", "content": "blue dog"}]
OTHER_TURNS = [TURNS[0], {"role": "assistant", "content": "green cat"}]
TEXTS = {"chosen": "blue dog", "rejected": "green cat", "completion": "one two", "label": True}
PROMPTS = {"prompt": "red? ", "input": "red? ", "question": "red? ", "instruction": "red? ", "system": ""}
MESSAGES = {"messages": TURNS[:1], "chosen": TURNS[1], "rejected": OTHER_TURNS[1]}
CONVERSATIONS = {"chosen": TURNS, "rejected": OTHER_TURNS}
RANKED = {
    "prompt": "red? ",
    "answers": [{"rank": 1, "answer": "blue dog"}, {"rank": 2, "answer": "green cat"}],
}
DPO_ROWS = {
    "argilla_chat": CONVERSATIONS,
    "ultra": {**PROMPTS, **CONVERSATIONS},
    "nectar": RANKED,
    "chat_template.default": MESSAGES,
}
KTO_ROWS = {"argilla_chat": {"completion": TURNS, "label": True}}


def strategies(package: str) -> list[str]:
    """Every strategy of axolotl's, as a YAML's `type:` names it; user_defined is a dict there."""
    folder = Path(importlib.import_module(package).__file__).parent
    names = []
    for path in sorted(folder.glob("*.py")):
        if path.stem in ("__init__", "user_defined"):
            continue
        module = importlib.import_module(f"{package}.{path.stem}")
        for name, function in inspect.getmembers(module, inspect.isfunction):
            if function.__module__ == module.__name__:
                names.append(f"{path.stem}.{name}")
    return names


def rows_for(kind: str, known: dict) -> dict:
    return known.get(kind) or known.get(kind.split(".")[1]) or {**PROMPTS, **TEXTS}


def datasets_of(load, config):
    from axolotl.common.datasets import load_preference_datasets

    return list(load_preference_datasets(cfg=load(config)).train_dataset)


EOS = "</s>"  # TRL writes it where it is missing, and so does the data's preparation


def as_trained(text: str) -> str:
    return text if text.endswith(EOS) else text + EOS


@pytest.mark.parametrize(
    ("rl", "axolotl_rl", "package", "rows"),
    [
        ("aot", {"rl": "dpo"}, "axolotl.prompt_strategies.dpo", DPO_ROWS),
        ("aot_unpaired", KTO, "axolotl.prompt_strategies.kto", KTO_ROWS),
    ],
)
def test_every_dataset_type_gives_what_axolotl_gives(
    load, base_config, tmp_path, rl, axolotl_rl, package, rows
):
    kinds = strategies(package)
    assert len(kinds) >= 10
    for kind in kinds:
        row = rows_for(kind, rows)
        path = write_jsonl(tmp_path / f"{kind}.jsonl", [row, row, {**row, "label": False}])
        entry = {"path": str(path), "type": kind}
        config = {**base_config, "datasets": [entry], "chat_template": "chatml"}
        config["skip_prepare_dataset"] = True  # saving takes longest, and would give theirs to ours
        ours = datasets_of(load, {**config, "rl": rl})
        theirs = datasets_of(load, {**config, **axolotl_rl})
        assert len(ours) == len(theirs) == 3, kind
        for own, their in zip(ours, theirs, strict=True):
            assert own["prompt"] == their["prompt"], kind
            assert rl == "aot" or own["label"] is their["label"], kind
            for side in {"chosen", "rejected", "completion"} & set(own):
                if kind.startswith("chat_template"):  # ours; axolotl cuts off what follows the turn's end
                    assert own[side] == their[side] + "\n", kind
                else:
                    assert own[side] == as_trained(their[side]), kind


def test_user_defined_types(load, base_config, tmp_path):
    path = write_jsonl(
        tmp_path / "rows.jsonl",
        [{"q": p["prompt"], "good": p["chosen"], "bad": p["rejected"]} for p in make_pairs(3)],
    )
    kind = {
        "field_prompt": "q",
        "field_chosen": "good",
        "field_rejected": "bad",
        "prompt_format": "Q: {prompt}",
    }
    entry = {"path": str(path), "type": kind}
    rows = datasets_of(
        load,
        {**base_config, "rl": "aot", "datasets": [entry], "dataset_prepared_path": str(tmp_path / "p")},
    )
    expected = {("Q: " + p["prompt"], p["chosen"] + EOS, p["rejected"] + EOS) for p in make_pairs(3)}
    assert {(r["prompt"], r["chosen"], r["rejected"]) for r in rows} == expected
