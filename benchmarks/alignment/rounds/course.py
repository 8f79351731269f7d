"""Training on a model's own answers, many courses at once.

In each round every course's model answers prompts that it has not seen; a judge scores the answers; the best
and the worst answer to a prompt make a pair. All of it offline is a course of one round. May import
`axolotl_aot.quickstart`, `benchmarks.alignment.batched`, `preferences`, `tasks`; NumPy, torch.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from axolotl_aot.quickstart.task import Problem
from benchmarks.alignment.batched.model import Adapter, new_adapter, sample
from benchmarks.alignment.batched.training import Answers, Bench, Kind, Run, train
from benchmarks.alignment.preferences import TEMPERATURE, Data
from benchmarks.alignment.tasks import Task
from benchmarks.alignment.tasks.task import SEED

AT_ONCE = 512  # answers of a course that are sampled or scored at once
MALFORMED = 0.0  # what the judge gives
REFERENCES = ("previous", "base")


@dataclass(frozen=True)
class Course:
    """kind: the loss's name. scored: answers over all rounds. answers: to a prompt.

    later: what the learning rate of the rounds after the first is multiplied by. reference: the model that a
    round begins with (previous), or the base model in all rounds. noise: of the judge, in units of the
    reward, of two answers as in the Bradley-Terry model; 0 for a judge that does not err.
    """

    kind: str
    beta: float
    learning_rate: float
    seed: int
    task: str
    scored: int
    rounds: int = 1
    epochs: int = 1
    answers: int = 2
    later: float = 1.0
    reference: str = "previous"
    noise: float = TEMPERATURE

    @property
    def prompts(self) -> int:
        """Of a round."""
        return self.scored // (self.rounds * self.answers)


class Round(NamedTuple):
    """adapter: of all courses, after it. pairs, malformed: of each course, and the share of its answers."""

    adapter: Adapter
    pairs: list[int]
    malformed: list[float]


def follow(bench: Bench, kinds: Mapping[str, Kind], courses: Sequence[Course]) -> Iterator[Round]:
    """The rounds of courses that differ in no more than the loss, its settings and the seed."""
    common = courses[0]
    problems = [_problems(bench.task, course) for course in courses]
    new = new_adapter(bench.base, [course.seed for course in courses])
    base = adapter = {name: (a.detach(), b.detach()) for name, (a, b) in new.items()}
    for number in range(common.rounds):
        part = slice(number * common.prompts, (number + 1) * common.prompts)
        asked = [own[part] for own in problems]
        ids = _answered(bench, adapter, asked, common.answers, number)
        reference = adapter if common.reference == "previous" else base
        sets, malformed = [], []
        for i, (course, own) in enumerate(zip(courses, asked, strict=True)):
            rewards = _judged(bench, own, ids[i], course)
            malformed.append(float(np.isnan(rewards).mean()))
            chosen, rejected = pairs(np.nan_to_num(rewards, nan=MALFORMED), ids[i], course, number)
            sets.append(_scored(bench, reference, i, ids[i][np.concatenate([chosen, rejected])]))
        runs = [_run(course, number) for course in courses]
        adapter = train(bench, kinds, runs, sets, adapter, reference)
        yield Round(adapter, [len(own.label) // 2 for own in sets], malformed)


def _run(course: Course, number: int) -> Run:
    rate = course.learning_rate * (course.later if number else 1)
    data = Data(course.prompts, task=course.task)
    return Run(course.kind, course.beta, rate, course.seed, data, course.epochs)


def _problems(task: Task, course: Course) -> list[Problem]:
    problems = task.split_problems()["train"]
    np.random.default_rng([SEED, course.seed]).shuffle(problems)
    return problems[: course.prompts * course.rounds]


@torch.no_grad()
def _answered(
    bench: Bench, adapter: Adapter, problems: list[list[Problem]], count: int, number: int
) -> Tensor:
    """Token ids of prompts with `count` answers each, filled up after the end token; (courses, n, length)."""
    prompts = torch.stack([bench.prompts(own) for own in problems]).repeat_interleave(count, dim=1)
    tokens = bench.task.max_words + 1
    drawn = [
        sample(bench.base, adapter, some, tokens, seed=1000 * number + part)
        for part, some in enumerate(prompts.split(AT_ONCE, dim=1))
    ]
    ids = torch.cat([prompts, torch.cat(drawn, dim=1)], dim=-1)
    is_end = ids[..., -tokens:] == bench.tokenizer.eos_token_id
    ids[..., -tokens:].masked_fill_(is_end.cumsum(-1) - is_end.long() > 0, bench.pad)
    return ids


def _judged(bench: Bench, problems: list[Problem], ids: Tensor, course: Course) -> np.ndarray:
    """What the judge sees in each answer; NaN of malformed ones. (problems, answers)"""
    words = bench.tokenizer.convert_ids_to_tokens(range(len(bench.tokenizer)))
    found = []
    for number, answer in enumerate(ids[:, -bench.task.max_words - 1 :].tolist()):
        problem = problems[number // course.answers]
        said = bench.task.answer_of_text(problem, " ".join(words[token] for token in answer))
        found.append(math.nan if said is None else bench.task.judged(problem, said))
    return np.array(found).reshape(-1, course.answers)


def pairs(rewards: np.ndarray, ids: Tensor, course: Course, number: int) -> tuple[np.ndarray, np.ndarray]:
    """The best and the worst answer to each problem, where they differ; both as rows of `ids`.

    Gumbel's noise on the scores of two answers is the Bradley-Terry model. rewards: (problems, answers). ids:
    (problems x answers, length). number: of the round.
    """
    rng = np.random.default_rng([SEED, course.seed, number])
    scores = rewards + course.noise * rng.gumbel(size=rewards.shape)
    first = np.arange(len(scores)) * course.answers
    chosen, rejected = first + scores.argmax(1), first + scores.argmin(1)
    differ = (ids[chosen] != ids[rejected]).any(-1).cpu().numpy()
    return chosen[differ], rejected[differ]


@torch.no_grad()
def _scored(bench: Bench, reference: Adapter, number: int, ids: Tensor) -> Answers:
    """As training takes them, the first half chosen. number: of the course, whose reference scores them."""
    own = {name: (a[[number]], b[[number]]) for name, (a, b) in reference.items()}
    parts = [bench.logprobs(own, some[None]) for some in ids.split(AT_ONCE)]
    logps, length = (torch.cat(field, dim=1) for field in zip(*parts, strict=True))
    label = torch.arange(len(ids), device=bench.device) < len(ids) // 2
    return Answers(ids, label, logps[0], length[0])
