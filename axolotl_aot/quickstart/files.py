"""The files of the first run: model, data and YAMLs. Imports `task` and `base_model` beside it."""

import json
import random
import shutil
from pathlib import Path
from typing import NamedTuple

from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from axolotl_aot.quickstart.base_model import (
    BASE_STEPS,
    Progress,
    answer_rates,
    make_base_model,
    make_tokenizer,
)
from axolotl_aot.quickstart.task import SEED, prompt_of, right_answer, split_problems, wrong_answer

ALIGNED = 2048  # problems with preference data

PLUGIN = "plugins:\n  - axolotl_aot.AOTPlugin\n"
COLUMNS = """type:
      field_prompt: prompt    # the columns are already what axolotl expects"""
STEPS = "num_epochs: 10\nmax_steps: 50"


class Run(NamedTuple):
    """The lines in which the YAMLs differ. data: of evaluation, and of training where `train` is None."""

    rl: str
    data: str
    train: str | None = None
    type: str = COLUMNS
    steps: str = STEPS


METHODS = {
    "aot": Run(f"{PLUGIN}rl: aot", "pairs"),
    "aot_unpaired": Run(f"{PLUGIN}rl: aot_unpaired", "unpaired"),
    "dpo": Run("rl: dpo", "pairs"),
    "kto": Run("rl: kto\nremove_unused_columns: false", "unpaired"),
}
ANCHORED = f"{PLUGIN}rl: aot_unpaired\naot_anchor: 1\naot_penalty: sigmoid"
ONE_EPOCH = "num_epochs: 1"
# On the model's own answers: the second round starts where the first has ended.
ROUNDS = {
    "round1": Run(ANCHORED, "unpaired", "answers1", "type: ranked", ONE_EPOCH),
    "round2": Run(
        f"{ANCHORED}\nlora_model_dir: {{folder}}/outputs/round1",
        "unpaired",
        "answers2",
        "type: ranked",
        ONE_EPOCH,
    ),
}
ROUNDS_NAME = "rounds.sh"
ROUND_PROMPTS = 512  # of a round, none of which the preference data have

ROUNDS_SCRIPT = """\
#!/bin/sh
# Written by `axolotl aot-quickstart`: two rounds of sampling, scoring and training. Stopped, it goes on.
set -e
cd "{folder}"
score() {{ [ -e "$1" ] || axolotl aot-sample --reward axolotl_aot.quickstart.task:reward --out "$@"; }}

score data/answers1.jsonl --prompts data/prompts1.jsonl round1.yml --base
axolotl train round1.yml
score data/answers2.jsonl --prompts data/prompts2.jsonl round1.yml
axolotl train round2.yml
axolotl aot-quickstart . --rates
"""

TEMPLATE = """\
# Written by `axolotl aot-quickstart`. Train with: axolotl train {path}
base_model: {folder}/base

{rl}
rl_beta: 1.0            # a small model with short answers; 0.01 suits a 7B one

datasets:
  - path: {folder}/data/{train}.jsonl
    {type}
test_datasets:
  - path: {folder}/data/{data}_eval.jsonl
    split: train
    {columns}
dataset_prepared_path: {folder}/prepared
output_dir: {folder}/outputs/{method}
sequence_len: 64

adapter: lora
lora_r: 16
lora_alpha: 32
lora_target_linear: true

micro_batch_size: 16
gradient_accumulation_steps: 4   # an effective batch of 64
{steps}
optimizer: adamw_torch
learning_rate: 0.0003
lr_scheduler: cosine
warmup_steps: 5

logging_steps: 5
eval_steps: 25
eval_batch_size: 64
save_strategy: "no"
seed: 42

# for a machine without a GPU
bf16: false
fp16: false
attn_implementation: sdpa
lora_mlp_kernel: false
lora_qkv_kernel: false
lora_o_kernel: false
lora_embedding_kernel: false
special_tokens:
  pad_token: <pad>
"""


def write_quickstart(folder: Path, base_steps: int = BASE_STEPS, progress: Progress = iter) -> list[Path]:
    """Write model, data and YAMLs into `folder`; a base model that is already there is kept.

    Returns the paths of the YAMLs of `METHODS`. The same files come out on every run.

    Raises:
        FileExistsError: the folder holds something else.
    """
    folder = folder.resolve()
    mark = folder / "aot.yml"
    ours = mark.is_file() and mark.read_text("utf-8").startswith(TEMPLATE.split(".")[0])
    if folder.exists() and any(folder.iterdir()) and not ours:
        raise FileExistsError(f"{folder} is not empty and was not written by aot-quickstart")
    (folder / "data").mkdir(parents=True, exist_ok=True)
    yamls = []
    for method, run in {**METHODS, **ROUNDS}.items():
        path = folder / f"{method}.yml"
        path.write_text(_yaml(path, method, run), "utf-8")
        if method in METHODS:
            yamls.append(path)
    (folder / ROUNDS_NAME).write_text(ROUNDS_SCRIPT.format(folder=folder), "utf-8")
    _write_data(folder / "data")
    _write_prompts(folder / "data")
    if not (folder / "base").is_dir():
        tokenizer = make_tokenizer()
        model = make_base_model(tokenizer, base_steps, progress)
        unfinished = folder / "base.unfinished"  # so that an interrupted run leaves no half a model
        shutil.rmtree(unfinished, ignore_errors=True)
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        unfinished.rename(folder / "base")
    return yamls


def _yaml(path: Path, method: str, run: Run) -> str:
    folder = path.parent
    return TEMPLATE.format(
        path=path,
        folder=folder,
        method=method,
        columns=COLUMNS,
        **{
            **run._asdict(),
            "rl": run.rl.format(folder=folder),
            "train": run.train or f"{run.data}_train",
        },
    )


def _write_prompts(folder: Path) -> None:
    """Of rounds, a file each."""
    problems = split_problems()[0][ALIGNED:]
    for number in range(len(ROUNDS)):
        some = problems[number * ROUND_PROMPTS : (number + 1) * ROUND_PROMPTS]
        lines = "".join(json.dumps({"text_prompt": prompt_of(p)}) + "\n" for p in some)
        (folder / f"prompts{number + 1}.jsonl").write_text(lines, "utf-8")


def _write_data(folder: Path) -> None:
    train, held_out = split_problems()
    for split, problems in (("train", train[:ALIGNED]), ("eval", held_out)):
        pairs = [
            {
                "prompt": prompt_of(p),
                "chosen": f" {right_answer(p)}",
                "rejected": f" {wrong_answer(p)}",
            }
            for p in problems
        ]
        rng = random.Random(SEED)
        unpaired = []  # one answer a prompt, of either label
        for pair in pairs:
            label = rng.random() < 0.5
            completion = pair["chosen" if label else "rejected"]
            unpaired.append({"prompt": pair["prompt"], "completion": completion, "label": label})
        for name, rows in (("pairs", pairs), ("unpaired", unpaired)):
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / f"{name}_{split}.jsonl").write_text(lines, "utf-8")


def measure_rates(folder: Path) -> dict[str, dict[str, float]]:
    """`answer_rates` on the held-out problems, of the base model and of every trained adapter.

    Raises:
        FileNotFoundError: there is no base model in `folder`.
    """
    if not (folder / "base").is_dir():
        raise FileNotFoundError(f"no base model in {folder}: run `axolotl aot-quickstart` first")
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    base = AutoModelForCausalLM.from_pretrained(folder / "base")
    problems = split_problems()[1]
    rates = {"base": answer_rates(base, tokenizer, problems)}
    for method in (*METHODS, *ROUNDS):
        adapter = folder / "outputs" / method
        if (adapter / "adapter_model.safetensors").is_file():
            model = PeftModel.from_pretrained(base, adapter)
            rates[method] = answer_rates(model, tokenizer, problems)
            base = model.unload()
    return rates
