"""The file that is written: one row a prompt, as `type: ranked` reads it, and what there is to say of it."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from axolotl_aot.data.prompts import Prompt
from axolotl_aot.data.rows import Message
from axolotl_aot.generation.answers import Answer

SCORED, UNSCORED = "completions", "unscored_completions"


def row_of(
    prompt: Prompt, answers: Sequence[Answer], scores: Sequence[float] | None, origin: Mapping[str, Any]
) -> dict[str, Any]:
    """The row of a prompt. answers: those that training can read. origin: what made them.

    Without scores the answers lie in a column that `type: ranked` does not know: it would take plain texts
    without scores for a ranking, the first as the best.
    """
    row: dict[str, Any] = {"text_prompt": prompt.messages} if prompt.is_text else _conversation(prompt)
    row[UNSCORED if scores is None else SCORED] = [answer.text for answer in answers]
    if scores is not None:
        row["scores"] = list(scores)
    row["finished"] = [answer.finished for answer in answers]
    row["as_sampled"] = [answer.as_sampled for answer in answers]
    row["sampled_from"] = dict(origin)
    return row


def _conversation(prompt: Prompt) -> dict[str, Any]:
    """Messages, and tools as JSON text: in a table of rows their schemas would get each other's keys."""
    row: dict[str, Any] = {"messages": [_plain(message) for message in prompt.messages]}
    return {**row, "tools": json.dumps(prompt.tools)} if prompt.tools else row


def _plain(message: Message) -> Message:
    if not message.get("tool_calls"):
        return message
    calls = json.dumps(message["tool_calls"])
    return {**message, "tool_calls": calls}


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write JSON Lines in one go: the file is there whole, or not at all."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@dataclass
class Summary:
    """What became of the prompts and the answers, counted.

    too_few: rows of prompts that are not in the file, as fewer than two of their answers can be read (or
    none, where one was asked for). equal: prompts all of whose scores are equal.
    """

    n: int
    prompts: int = 0
    answers: int = 0
    unfinished: int = 0
    otherwise: int = 0
    equal: int = 0
    too_few: list[int] = field(default_factory=list)
    problems: dict[str, int] = field(default_factory=dict)
    scores: list[float] = field(default_factory=list)

    def add(self, prompt: Prompt, answers: Sequence[Answer], scores: Sequence[float] | None) -> bool:
        """Count a prompt's answers; whether they make a row."""
        self.prompts += 1
        self.answers += len(answers)
        self.unfinished += sum(not a.finished for a in answers)
        self.otherwise += sum(a.finished and not a.as_sampled and a.problem is None for a in answers)
        for answer in answers:
            if answer.problem is not None:
                self.problems[answer.problem] = self.problems.get(answer.problem, 0) + 1
        usable = sum(a.problem is None for a in answers)
        if usable < min(self.n, 2):
            self.too_few.append(prompt.row)
            return False
        if scores is not None:
            self.scores += scores
            self.equal += self.n > 1 and min(scores) == max(scores)
        return True

    def lines(self) -> list[str]:
        """What there is to say, most important first."""
        said = [f"{self.answers:,} answers to {self.prompts:,} prompts"]
        if self.scores:
            said[0] += f", mean score {sum(self.scores) / len(self.scores):.4g}"
            if self.equal:
                said.append(
                    f"{self.equal:,} of the prompts have equal scores only: nothing is learned from them"
                )
        if self.unfinished:
            said.append(
                f"{self.unfinished:,} answers ({self.unfinished / self.answers:.1%}) did not end within "
                "--max-new-tokens (`finished: false`): in training they get an end token that the model did "
                "not write"
            )
        if self.otherwise:
            said.append(
                f"{self.otherwise:,} answers are not the sampled tokens when their text is tokenized again "
                "(`as_sampled: false`)"
            )
        for problem, count in self.problems.items():
            said.append(f"{count:,} answers are left out, as training could not read them: {problem}")
        if self.too_few:
            rows = ", ".join(map(str, self.too_few[:5])) + (", ..." if len(self.too_few) > 5 else "")
            said.append(
                f"{len(self.too_few):,} prompts are left out, for want of answers to compare: rows {rows}"
            )
        return said
