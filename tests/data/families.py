"""Chat templates that axolotl ships, each with a tokenizer that knows its family's special tokens."""

import shutil
from pathlib import Path
from typing import Any, NamedTuple

from axolotl.utils.chat_templates import get_chat_template
from datasets import Dataset
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from tests.tiny import WORDS, make_tokenizer, write_jsonl


class Family(NamedTuple):
    """A template's name, its special tokens, and what of a conversation it renders."""

    template: str
    tokens: list[str]
    bos: str | None = None
    tools: bool = False
    thinking: bool = False
    needs_text: bool = False  # fails on a null content


CHATML = ["<|im_start|>", "<|im_end|>"]
LLAMA = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
LLAMA4 = ["<|begin_of_text|>", "<|header_start|>", "<|header_end|>", "<|eot|>", "<|python_start|>"]
MISTRAL = ["[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]", "[TOOL_RESULTS]"]
FAMILIES = {
    family.template: family
    for family in (
        Family("llama3", LLAMA, bos="<|begin_of_text|>"),
        Family("llama4", LLAMA4, bos="<|begin_of_text|>", tools=True, needs_text=True),
        Family("mistral_v1", [], bos="<s>"),
        Family("mistral_v3_tekken", [*MISTRAL, "[/TOOL_RESULTS]"], bos="<s>", tools=True),
        Family("mistral_v7_tekken", [*MISTRAL, "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"], bos="<s>"),
        Family("chatml", CHATML),
        Family("qwen_25", [*CHATML, "<tool_call>", "</tool_call>"], tools=True),
        Family("qwen3", [*CHATML, "<think>", "</think>", "<tool_call>"], tools=True, thinking=True),
        Family("gemma3", ["<start_of_turn>", "<end_of_turn>"], bos="<bos>"),
        Family("phi_35", ["<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]),
    )
}


def tokenizer_of(family: Family) -> PreTrainedTokenizerFast:
    """A tokenizer with the family's special tokens; it adds a beginning of its own to text, as theirs do."""
    tokenizer = make_tokenizer([" ".join(WORDS)], 400)
    tokenizer.add_special_tokens({"additional_special_tokens": family.tokens})
    if family.bos:
        tokenizer.add_special_tokens({"bos_token": family.bos})
    # as Llama 3 and GPT-2 have it: white space has no offsets of its own
    backend = tokenizer.backend_tokenizer
    trimming = processors.ByteLevel(trim_offsets=True)
    backend.post_processor = processors.Sequence([trimming, backend.post_processor])
    tokenizer.chat_template = get_chat_template(family.template)
    return tokenizer


def prepare_with(
    tokenizer: PreTrainedTokenizerFast,
    rows: list[dict],
    config: dict[str, Any],
    load,
    folder: Path,
    **options: Any,
) -> Dataset:
    """The training set of rows, in their order, as axolotl's commands load it.

    config: of the run, with its `rl`. load: the fixture. folder: for files. options: of the entry.
    """
    from axolotl.common.datasets import load_preference_datasets

    shutil.rmtree(folder / "tokenizer", ignore_errors=True)  # templates of an earlier call
    tokenizer.save_pretrained(folder / "tokenizer")
    path = write_jsonl(folder / "rows.jsonl", rows)
    config = {
        "tokenizer_config": str(folder / "tokenizer"),
        "shuffle_merged_datasets": False,
        "skip_prepare_dataset": True,
        "datasets": [{"path": str(path), **options}],
        **config,
        "sequence_len": 2048,
        "special_tokens": None,
    }
    return load_preference_datasets(cfg=load(config)).train_dataset
