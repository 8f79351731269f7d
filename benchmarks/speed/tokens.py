"""The tokens that all contenders of a case train on."""

import json
import random
import re
from pathlib import Path
from typing import Any

from benchmarks.speed.cases import Case
from benchmarks.speed.errors import UsageError

VOCABULARY = 1_000  # of the tokens that occur; what they mean does not matter here
COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids")


def real_lengths(data: Path | None, count: int) -> list[tuple[int, int, int]]:
    """Tokens of prompt, chosen and rejected; of real pairs where there are any at hand."""
    rng = random.Random(0)
    if data is not None:
        return rng.choices([_lengths(row) for row in read_pairs(data)], k=count)

    def log_normal(median: float, sigma: float) -> int:
        return max(1, round(median * rng.lognormvariate(0, sigma)))

    # fitted to 414 real pairs: answers of chat models to instructions
    return [(log_normal(30, 0.8), log_normal(270, 0.8), log_normal(250, 1.0)) for _ in range(count)]


def read_pairs(data: Path) -> list[dict[str, Any]]:
    """Rows with `messages` (of role and content), `chosen` and `rejected`.

    Raises:
        UsageError: a row lacks one of them.
    """
    pairs = [json.loads(line) for line in data.read_text().splitlines()]
    for number, row in enumerate(pairs, start=1):
        if missing := {"messages", "chosen", "rejected"} - set(row):
            raise UsageError(
                f"--data {data}, row {number} has no {', '.join(sorted(missing))}: pairs are needed"
            )
    return pairs


def _lengths(row: dict[str, Any]) -> tuple[int, int, int]:
    prompt = " ".join(message["content"] for message in row["messages"])
    return _tokens(prompt), _tokens(answer_text(row["chosen"])), _tokens(answer_text(row["rejected"]))


def _tokens(text: str) -> int:
    """About: words and their ends, as tokenizers of English have it."""
    return max(1, round(1.15 * len(re.findall(r"\w+|[^\w\s]", text))))


def answer_text(answer: Any) -> str:
    """The text of an answer: a text, a message, or a conversation that ends with it."""
    if isinstance(answer, list):
        answer = answer[-1]
    return answer["content"] if isinstance(answer, dict) else answer


def rows(case: Case, data: Path | None, count: int) -> dict[str, list]:
    """Columns of `count` pairs, random tokens of the case's lengths."""
    rng = random.Random(1)
    if case.lengths == "real":
        sizes = [r for r in real_lengths(data, 20 * count) if r[0] + max(r[1:]) <= case.longest][:count]
    else:
        total = int(case.lengths)
        prompt = max(1, int(total * case.prompt))
        sizes = [(prompt, total - prompt, total - prompt)] * count
    vocabulary = min(VOCABULARY, case.vocabulary or VOCABULARY)
    columns = {
        name: [[rng.randrange(vocabulary) for _ in range(size[i])] for size in sizes]
        for i, name in enumerate(COLUMNS)
    }
    return {**columns, **{name: [""] * count for name in ("prompt", "chosen", "rejected")}}


def count(table: dict[str, list]) -> int:
    """Tokens of all sequences, a pair's prompt counted twice."""
    pairs = zip(*(table[name] for name in COLUMNS), strict=True)
    return sum(2 * len(prompt) + len(chosen) + len(rejected) for prompt, chosen, rejected in pairs)
