"""The YAMLs that a user copies: valid to axolotl, and trained with a tiny model in the big one's place.

The paper's other models, and AOT on other machines, are tables of keys to change, in the README beside the
YAMLs; each row of them is tried on the YAMLs that it is for.
"""

import copy
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from lm_eval.tasks import TaskManager
from safetensors.torch import load_file

from tests.helpers import column
from tests.processes import ENVIRONMENT
from tests.test_plugin import validate
from tests.tiny import WORDS, make_pairs, unpair, write_jsonl

FOLDER = Path(__file__).parents[1] / "example_configs"
PAPER = FOLDER / "paper"
RUNS = {
    path.stem: yaml.safe_load(path.read_text())
    for path in sorted(FOLDER.glob("**/*.yml"))
    if path.stem not in ("sweep-beta", "lm-eval")
}
LN_2 = math.log(2)
# of a policy that is the reference, with a beta of 0.01
FIRST_LOSS = {"aot": LN_2, "aot_unpaired": LN_2, "dpo": LN_2, "ipo": (1 / (2 * 0.01)) ** 2, "kto": 0.5}
TRAINED_FIRST = ("merlinite-7b-aot-80gb", "merlinite-7b-aot-unpaired-80gb")  # the others are slow tests
METHODS = ("aot", "aot-unpaired", "dpo", "ipo", "kto")
MACHINES = {"80gb": 1, "24gb": 1, "8gpu": 8}  # processes


# --- The README's tables --------------------------------------------------------------------------


def readme_table(first_column: str) -> list[dict[str, str]]:
    """The rows of the table whose heading begins with this column, by heading, without back-ticks."""
    text = (PAPER / "README.md").read_text()
    lines = (
        re.search(rf"^\| {first_column} \|.*?(?=\n\n)", text, re.DOTALL | re.MULTILINE).group().splitlines()
    )
    cells = [re.split(r"(?<!\\)\|", line.strip().strip("|")) for line in lines]
    cells = [[cell.strip().strip("`").replace("\\|", "|") for cell in row] for row in cells]
    return [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]


MODELS = {row.pop("model"): row for row in readme_table("model")}
MACHINE_KEYS = {(row.pop("method"), row.pop("machine")): row for row in readme_table("method")}


def changed(raw: dict, row: dict[str, str]) -> dict:
    """A YAML with a row's keys changed; a key that the YAML has not is a mistake of the table's."""
    result = copy.deepcopy(raw)
    for key, value in row.items():
        *outer, last = key.split(".")
        place = result
        for name in outer:
            place = place[name]
        assert last in place, f"{key} is no key of the YAML"
        place[last] = yaml.safe_load(value)
    return result


def for_machine(method: str, machine: str) -> dict:
    """Merlinite's YAML of a method for a machine, by the table where there is no file of it."""
    file = RUNS[f"merlinite-7b-{method}-80gb"]
    if machine == "80gb":
        return file
    return changed(
        file, {**MACHINE_KEYS[method, machine], "output_dir": f"outputs/merlinite-7b-{method}-{machine}"}
    )


def for_model(raw: dict, model: str, method: str, machine: str) -> dict:
    row = {k: v.replace("<method>", method).replace("<machine>", machine) for k, v in MODELS[model].items()}
    return changed(raw, row)


def test_the_tables_cover_every_model_method_and_machine():
    assert set(MODELS) == {"Merlinite-7B", "OpenHermes-2.5-Mistral-7B", "Llama-3-8B-Instruct"}
    assert set(MACHINE_KEYS) == {(method, m) for method in ("aot", "aot-unpaired") for m in MACHINES}
    files = {f"merlinite-7b-{method}-80gb" for method in METHODS}
    files |= {"merlinite-7b-aot-24gb", "merlinite-7b-aot-8gpu"}
    assert {path.stem for path in PAPER.glob("*.yml")} == files | {"sweep-beta", "lm-eval"}


@pytest.mark.parametrize("name", [name for name in RUNS if name.startswith("merlinite-7b-")])
def test_the_tables_say_what_the_files_say(name):
    method, machine = name.removeprefix("merlinite-7b-").rsplit("-", 1)
    assert for_machine(method, machine) == RUNS[name]
    assert for_model(RUNS[name], "Merlinite-7B", method, machine) == RUNS[name]
    row = MACHINE_KEYS.get((method, machine), {})
    assert changed(RUNS[name], row) == RUNS[name]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    ("method", "machine"), dict.fromkeys([*((method, "80gb") for method in METHODS), *MACHINE_KEYS])
)
def test_every_row_passes_axolotls_validation(model, method, machine):
    raw = for_model(for_machine(method, machine), model, method, machine)
    assert_valid(raw)
    name = raw["base_model"].rpartition("/")[2].lower().removeprefix("meta-")
    assert raw["output_dir"] == f"outputs/{name}-{method}-{machine}"


@pytest.mark.parametrize("method", ["aot", "aot-unpaired"])
def test_a_step_is_as_large_on_every_machine(method):
    rows = [(for_machine(method, machine), processes) for machine, processes in MACHINES.items()]
    steps = {p * raw["micro_batch_size"] * raw["gradient_accumulation_steps"] for raw, p in rows}
    assert steps == {128 if method == "aot" else 256}


# --- The YAMLs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RUNS)
def test_they_pass_axolotls_validation(name):
    assert_valid(RUNS[name])


def assert_valid(raw: dict) -> None:
    """axolotl takes the YAML and keeps every key of it."""
    cfg = validate(copy.deepcopy(raw))
    known = {"plugins", "bf16", "rl", "datasets", "test_datasets"}  # axolotl gives these other forms
    for key in raw.keys() - known:
        assert cfg[key] == raw[key], f"axolotl dropped or changed {key}"
    if raw["rl"].startswith("aot"):
        assert cfg.trainer_cls.startswith("axolotl_aot.training.trainers.")


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """Where UltraFeedback lies, with the columns of the Hub's; as `ultrafeedback.py` writes it, too."""
    folder = tmp_path_factory.mktemp("files")

    def conversation(prompt: str, answer: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]

    def binarized(seed: int) -> list[dict]:
        pairs = make_pairs(12, seed)
        pairs[0]["chosen"] += "\n\n"  # as answers of models often end
        pairs[1]["rejected"] = " ".join(WORDS * 20)  # longer than what is trained on below
        pairs.append({"prompt": "red?", "chosen": "blue", "rejected": ""})
        return [
            {
                "prompt": pair["prompt"],
                "prompt_id": str(number),
                "chosen": conversation(pair["prompt"], pair["chosen"]),
                "rejected": conversation(pair["prompt"], pair["rejected"]),
                "messages": conversation(pair["prompt"], pair["chosen"]),
                "score_chosen": 8.0,
                "score_rejected": 5.0,
            }
            for number, pair in enumerate(pairs)
        ]

    hub = folder / "hub"
    (hub / "data").mkdir(parents=True)
    for seed, split in enumerate(("train_prefs", "test_prefs")):
        write_jsonl(hub / "data" / f"{split}-00000-of-00001.jsonl", binarized(seed))
    labelled = [{**row, "rating": 4.5, "source": "x"} for row in unpair(make_pairs(12))]
    write_jsonl(folder / "labelled.jsonl", [*labelled, {**labelled[0], "completion": ""}])
    command = [sys.executable, str(PAPER / "ultrafeedback.py"), str(hub)]
    written = subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True)
    assert written.returncode == 0, written.stderr[-3000:]
    assert "train_prefs: 12 pairs, 1 with an empty turn left out" in written.stdout
    return folder


def with_files(raw: dict, files: Path) -> dict:
    """The data sets of a YAML, found in `files`."""
    hub = {
        "HuggingFaceH4/ultrafeedback_binarized": "hub/data/train_prefs-00000-of-00001.jsonl",
        "argilla/ultrafeedback-binarized-preferences-cleaned-kto": "labelled.jsonl",
    }
    return {
        key: [
            {**entry, "path": str(files / hub.get(entry["path"], entry["path"])), "split": "train"}
            for entry in raw[key]
        ]
        for key in ("datasets", "test_datasets")
        if key in raw
    }


def small(raw: dict, tiny_model: Path, folder: Path) -> dict:
    """What stands in a big model's place, without what needs a GPU."""
    return {
        "base_model": str(tiny_model),
        "special_tokens": {"pad_token": "<pad>"},
        "dataset_prepared_path": str(folder / "prepared"),
        "dataset_num_proc": 1,
        "output_dir": str(folder / "out"),
        "max_steps": 2,
        "num_epochs": 2,  # the data are fewer than an effective batch
        "learning_rate": 1e-3,
        "warmup_ratio": 0.0,
        "bf16": False,
        "tf32": False,
        "attn_implementation": "sdpa",
        "optimizer": "adamw_torch",
        # 1% of these rows would be none
        **({"val_set_size": 0.25} if raw.get("val_set_size") else {}),
    }


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in TRAINED_FIRST else pytest.mark.slow) for name in RUNS]
)
def test_they_train(run, name, files, tiny_model, tmp_path):
    raw = RUNS[name]
    trainer = run({**raw, **small(raw, tiny_model, tmp_path), **with_files(raw, files)})
    losses = column(trainer, "loss")
    assert len(losses) == 2 and losses[0] == pytest.approx(FIRST_LOSS[raw["rl"]], rel=1e-4)
    adapter = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert any(torch.any(matrix != 0) for key, matrix in adapter.items() if "lora_B" in key)
    tokenizer = trainer.processing_class
    prompts = [tokenizer.decode(ids) for ids in trainer.train_dataset["prompt_ids"]]
    asked = {pair["prompt"] for pair in make_pairs(12)}
    assert len(prompts) >= 9 and all(any(words in prompt for words in asked) for prompt in prompts)


@pytest.mark.slow
@pytest.mark.parametrize("chat_template", ["llama3", "chatml"])
def test_all_methods_see_the_same_tokens(run, chat_template, files, tiny_model, tmp_path):
    """With a tokenizer that puts a BOS before text, and a template that trims (llama3) or does not."""
    length = 250
    seen: dict[str, list[tuple[tuple, tuple]]] = {}
    for method in ("dpo", "kto", "aot", "aot-unpaired"):
        raw = RUNS[f"merlinite-7b-{method}-80gb"]
        here = small(raw, tiny_model, tmp_path / method)
        here |= {"chat_template": chat_template, "sequence_len": length, "max_steps": 1}
        rows = run({**raw, **here, **with_files(raw, files)}).train_dataset
        sides = ("completion",) if "completion_ids" in rows.column_names else ("chosen", "rejected")
        seen[method] = sorted(
            (tuple(row["prompt_ids"]), tuple(row[f"{side}_ids"][: length - len(row["prompt_ids"])]))
            for row in rows
            for side in sides
        )
    assert len(seen["dpo"]) == 24
    assert any(len(prompt) + len(completion) == length for prompt, completion in seen["dpo"])
    assert seen["dpo"] == seen["kto"] == seen["aot"] == seen["aot-unpaired"]


def test_the_sweep():
    from axolotl.cli.utils import generate_sweep_configs

    sweep = yaml.safe_load((PAPER / "sweep-beta.yml").read_text())
    base = RUNS["merlinite-7b-aot-80gb"]
    betas = [validate({**base, **point}).rl_beta for point in generate_sweep_configs(base, sweep)]
    assert sorted(betas) == [0.01, 0.05, 0.1, 0.5]


@pytest.mark.slow
def test_the_benchmarks_are_known_to_the_harness():
    from axolotl.integrations.lm_eval.cli import build_lm_eval_command

    raw = yaml.safe_load((PAPER / "lm-eval.yml").read_text())
    commands = list(build_lm_eval_command(raw["lm_eval_tasks"], model=raw["lm_eval_model"]))
    named = {task for command in commands for task in command[command.index("--tasks") + 1].split(",")}
    assert len(named) == 6 and named <= set(TaskManager().all_tasks)
    assert raw["output_dir"] == RUNS["merlinite-7b-aot-80gb"]["output_dir"]
