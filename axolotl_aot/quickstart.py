"""The first run: a small model, a task that a program can check, and YAMLs to align the model on it.

The task is to sort four letters. The base model is trained here, in about half a minute, on data in
which half of the answers are sorted upwards and half downwards, so that it samples each about half of
the time. The preference data want upwards. An answer is right (upwards), wrong (downwards) or malformed
(anything else); the share of the last shows whether training moved mass from wrong to right, or merely
pushed the wrong answers down.

Everything is drawn from one seed; nothing is downloaded. Imports torch, transformers, tokenizers, peft
and nothing of the package.
"""

import json
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import permutations
from pathlib import Path

import torch
import torch.nn.functional as F
from peft import PeftModel
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

LETTERS = "abcdefghijkl"
LENGTH = 4
Problem = tuple[str, ...]
KINDS = ("right", "wrong", "malformed")

SEED = 0
HELD_OUT = 512  # problems that neither the base model nor the alignment sees
ALIGNED = 2048  # problems with preference data
BASE_STEPS = 400
PAD, BOS, EOS = "<pad>", "<s>", "</s>"

Progress = Callable[[Iterable[int]], Iterable[int]]

# The lines in which the YAMLs differ: the rl type, and the data it takes.
METHODS = {
    "aot": ("plugins:\n  - axolotl_aot.AOTPlugin\nrl: aot", "pairs"),
    "aot_unpaired": ("plugins:\n  - axolotl_aot.AOTPlugin\nrl: aot_unpaired", "unpaired"),
    "dpo": ("rl: dpo", "pairs"),
    "kto": ("rl: kto\nremove_unused_columns: false", "unpaired"),
}

TEMPLATE = """\
# Written by `axolotl aot-quickstart`. Train with: axolotl train {path}
base_model: {folder}/base

{rl}
rl_beta: 1.0            # a small model with short answers; 0.01 suits a 7B one

datasets:
  - path: {folder}/data/{data}_train.jsonl
    type: &type         # the columns are already what axolotl expects
      field_prompt: prompt
test_datasets:
  - path: {folder}/data/{data}_eval.jsonl
    split: train
    type: *type
dataset_prepared_path: {folder}/prepared
output_dir: {folder}/outputs/{method}
sequence_len: 64

adapter: lora
lora_r: 16
lora_alpha: 32
lora_target_linear: true

micro_batch_size: 16
gradient_accumulation_steps: 4   # an effective batch of 64
num_epochs: 10
max_steps: 50
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


# --- The task ------------------------------------------------------------------------------------


def prompt_of(letters: Iterable[str]) -> str:
    return f"sort {' '.join(letters)} :"


def right_answer(letters: Iterable[str]) -> str:
    return " ".join(sorted(letters))


def wrong_answer(letters: Iterable[str]) -> str:
    return " ".join(sorted(letters, reverse=True))


def kind_of(letters: Iterable[str], answer: str) -> str:
    """Which of `KINDS` a decoded answer, with its end token, is."""
    letters = list(letters)
    known = {f"{right_answer(letters)} {EOS}": "right", f"{wrong_answer(letters)} {EOS}": "wrong"}
    return known.get(answer, "malformed")


def split_problems() -> tuple[list[Problem], list[Problem]]:
    """All problems, in random order: those to train on, and those held out."""
    problems = list(permutations(LETTERS, LENGTH))
    random.Random(SEED).shuffle(problems)
    return problems[HELD_OUT:], problems[:HELD_OUT]


# --- The base model ------------------------------------------------------------------------------


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word; a sequence begins with the BOS token."""
    words = [PAD, BOS, EOS, "<unk>", "sort", ":", *LETTERS]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, words.index(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD, unk_token="<unk>"
    )


def make_base_model(
    tokenizer: PreTrainedTokenizerBase, steps: int = BASE_STEPS, progress: Progress = iter
) -> LlamaForCausalLM:
    """A 3-layer Llama that answers upwards and downwards equally often."""
    model = new_model(tokenizer)
    sequences, prompt_length = _both_answers(tokenizer, split_problems()[0])
    generator = torch.Generator().manual_seed(SEED)

    def draw() -> tuple[Tensor, int]:
        chosen = torch.randint(len(sequences), (128,), generator=generator)
        return sequences[chosen].flatten(0, 1), prompt_length

    fit(model, draw, steps, progress)
    return model.eval()


def new_model(tokenizer: PreTrainedTokenizerBase) -> LlamaForCausalLM:
    """A small Llama with random weights, the same each time."""
    torch.manual_seed(SEED)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=64,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def fit(
    model: PreTrainedModel, draw: Callable[[], tuple[Tensor, int]], steps: int, progress: Progress = iter
) -> None:
    """Train a model on answers. draw: the next batch's token ids (n, length), and the prompts' length."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps)
    for _ in progress(range(steps)):
        ids, prompt_length = draw()
        logits = model(ids[:, :-1], use_cache=False).logits[:, prompt_length - 1 :]
        loss = F.cross_entropy(logits.flatten(0, 1), ids[:, prompt_length:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()


def _both_answers(tokenizer: PreTrainedTokenizerBase, problems: list[Problem]) -> tuple[Tensor, int]:
    """Token ids of every problem with each of its answers, (problems, 2, length), and the prompts' length."""
    prompts = token_ids(tokenizer, [prompt_of(p) for p in problems])
    both = [
        torch.cat([prompts, token_ids(tokenizer, [f"{answer(p)} {EOS}" for p in problems], False)], 1)
        for answer in (right_answer, wrong_answer)
    ]
    return torch.stack(both, dim=1), prompts.shape[1]


def token_ids(tokenizer: PreTrainedTokenizerBase, texts: list[str], special: bool = True) -> Tensor:
    """Of texts of equal length, (texts, length); `special`: with the BOS token."""
    return tokenizer(texts, add_special_tokens=special, return_tensors="pt").input_ids


@torch.no_grad()
def answer_rates(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: list[Problem],
    seed: int = SEED,
) -> dict[str, float]:
    """Share of each of `KINDS` among answers sampled at temperature 1, one a problem."""
    ids = token_ids(tokenizer, [prompt_of(p) for p in problems])
    prompt_length = ids.shape[1]
    generator = torch.Generator().manual_seed(seed)
    for _ in range(LENGTH + 1):  # the letters and the end token
        logits = model(input_ids=ids, use_cache=False).logits[:, -1]
        drawn = torch.multinomial(logits.float().softmax(-1), 1, generator=generator)
        ids = torch.cat([ids, drawn], dim=1)
    answers = tokenizer.batch_decode(ids[:, prompt_length:])
    counts = Counter(kind_of(p, answer) for p, answer in zip(problems, answers, strict=True))
    return {kind: counts[kind] / len(problems) for kind in KINDS}


# --- The files -----------------------------------------------------------------------------------


def write_quickstart(folder: Path, base_steps: int = BASE_STEPS, progress: Progress = iter) -> list[Path]:
    """Write model, data and YAMLs into `folder`; a base model that is already there is kept.

    Returns the YAMLs' paths. The same files come out on every run.

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
    for method, (rl, data) in METHODS.items():
        path = folder / f"{method}.yml"
        path.write_text(TEMPLATE.format(path=path, folder=folder, method=method, rl=rl, data=data), "utf-8")
        yamls.append(path)
    _write_data(folder / "data")
    if not (folder / "base").is_dir():
        tokenizer = make_tokenizer()
        model = make_base_model(tokenizer, base_steps, progress)
        unfinished = folder / "base.unfinished"  # so that an interrupted run leaves no half a model
        shutil.rmtree(unfinished, ignore_errors=True)
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        unfinished.rename(folder / "base")
    return yamls


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
    for method in METHODS:
        adapter = folder / "outputs" / method
        if (adapter / "adapter_model.safetensors").is_file():
            model = PeftModel.from_pretrained(base, adapter)
            rates[method] = answer_rates(model, tokenizer, problems)
            base = model.unload()
    return rates
