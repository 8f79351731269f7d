"""Rows that every contender trains on: conversations with two answers, none longer than the YAML allows."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from benchmarks.speed.command_line.yamls import Run
from benchmarks.speed.errors import UsageError
from benchmarks.speed.tokens import answer_text, read_pairs, real_lengths

MARGIN = 8  # tokens that a pipeline may add to what the template writes
LETTERS = "bc"  # with the space before it a token in the small model's tokenizer, and in most


def write_pairs(path: Path, run: Run, data: Path | None) -> Path:
    """As many rows as the run trains on, from a file with `messages`, `chosen`, `rejected`, or made up.

    Raises:
        UsageError: the file has fewer that fit, or the model has no tokenizer.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(run.base_model)
    except OSError as error:
        raise UsageError(
            f"--base-model {run.base_model}: no tokenizer could be loaded from it; {error}"
        ) from None
    fitting = []
    for row in _made_up() if data is None else _read(data):
        if row["chosen"] != row["rejected"] and _longest(row, tokenizer) + MARGIN <= run.sequence_len:
            fitting.append(row)
        if len(fitting) == run.rows:
            break
    if len(fitting) < run.rows:
        raise UsageError(
            f"--data {data}: {len(fitting)} of its pairs have at most --sequence-len {run.sequence_len} "
            f"tokens, and {run.rows} are needed (--steps {run.steps} and one more): fewer steps or more pairs"
        )
    path.write_text("".join(json.dumps(row) + "\n" for row in fitting))
    return path


def _read(data: Path) -> Iterator[dict[str, Any]]:
    rows = read_pairs(data)
    random.Random(0).shuffle(rows)
    for row in rows:
        chosen, rejected = (
            {"role": "assistant", "content": answer_text(row[s])} for s in ("chosen", "rejected")
        )
        yield {"messages": row["messages"], "chosen": chosen, "rejected": rejected}


def _made_up() -> Iterator[dict[str, Any]]:
    """Of lengths like those of real pairs, without an end."""
    rng = random.Random(1)

    def message(role: str, tokens: int) -> dict[str, str]:
        return {"role": role, "content": " ".join(rng.choices(LETTERS, k=tokens))}

    while True:
        for prompt, chosen, rejected in real_lengths(None, 10_000):
            yield {
                "messages": [message("user", prompt)],
                "chosen": message("assistant", chosen),
                "rejected": message("assistant", rejected),
            }


def _longest(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> int:
    texts = [
        tokenizer.apply_chat_template([*row["messages"], row[side]], tokenize=False)
        for side in ("chosen", "rejected")
    ]
    return max(len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"])
