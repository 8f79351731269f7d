"""The tiny model and the tiny data of the tests."""

import json
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from tokenizers.decoders import ByteLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = ["red", "green", "blue", "one", "two", "three", "cat", "dog", "bird", "runs", "sleeps", "sings"]
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def sentence(rng: random.Random) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(2, 9)))


def make_pairs(count: int, seed: int = 0) -> list[dict]:
    """Pairs of random sentences, of all lengths; no token spans a prompt's end, where TRL would lose it."""
    rng = random.Random(seed)
    return [
        {"prompt": sentence(rng) + "?", "chosen": " " + sentence(rng), "rejected": " " + sentence(rng)}
        for _ in range(count)
    ]


def unpair(pairs: list[dict], only: bool | None = None) -> list[dict]:
    """Each pair as a positive and a negative row, in this order; or one label only."""
    rows = [
        {"prompt": pair["prompt"], "completion": pair[side], "label": label}
        for pair in pairs
        for side, label in (("chosen", True), ("rejected", False))
    ]
    return [row for row in rows if only is None or row["label"] is only]


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def with_rows(config: dict, path: Path, rows: list[dict]) -> dict:
    """The config with these rows, written to `path`, as its one data set."""
    entry = {**config["datasets"][0], "path": str(write_jsonl(path, rows))}
    return {**config, "datasets": [entry]}


def with_test_rows(config: dict, path: Path, rows: list[dict]) -> dict:
    """The config with these rows, written to `path`, as its evaluation set."""
    entry = {"path": str(write_jsonl(path, rows)), "split": "train", "type": {"field_prompt": "prompt"}}
    return {**config, "test_datasets": [entry], "val_set_size": None}


def without_report(config: dict) -> dict:
    """The config of a run of AOT's without its report, which takes seconds, unless it sets `aot_report`."""
    if str(config.get("rl")).startswith("aot"):  # any other `rl` would refuse the key
        return {"aot_report": False, **config}
    return config


def make_tokenizer(text: list[str], vocab_size: int = 300) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevel()
    special = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        chat_template=CHAT_TEMPLATE,
    )


def make_model(folder: Path, text: list[str] | None = None, vocab_size: int = 300) -> None:
    """A 2-layer Llama with random weights, and its tokenizer, saved to `folder`."""
    tokenizer = make_tokenizer(text or [" ".join(WORDS)], vocab_size)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    for parameter in model.parameters():  # a spread of logits, so that rewards differ
        parameter.data.mul_(2 if parameter.ndim == 2 else 1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
