"""Many runs trained and scored at once.

As `axolotl train` does it with the YAML of `benchmarks.alignment.cells`: AdamW, gradients cut to a norm of 1,
a cosine schedule with a tenth of warm-up, the batches of a random order. Which pairs meet in a batch, LoRA's
first matrices and the sampling noise are other draws than those of axolotl's runs. Imports NumPy, torch,
`benchmarks.alignment.preferences`, `summaries`, `tasks`, and `losses` and `model` beside it.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from axolotl_aot.quickstart.base_model import PAD
from axolotl_aot.quickstart.task import EOS, Problem
from benchmarks.alignment.batched.losses import Loss, Step
from benchmarks.alignment.batched.model import Adapter, Base, load_base, new_adapter, sample, token_logprobs
from benchmarks.alignment.preferences import Data
from benchmarks.alignment.summaries import summary
from benchmarks.alignment.tasks import TASKS, Task

SIZE = 64  # pairs of a step, or half of its answers
CHUNK = 32  # runs whose rewards are sampled at once
BETAS, EPS, MAX_NORM = (0.9, 0.999), 1e-8, 1.0


class Kind(NamedTuple):
    """How a loss is fed.

    paired: with pairs, in one order. by_chance: labels come by chance. mismatched: also with answers to other
    prompts.
    """

    loss: Loss
    paired: bool = False
    by_chance: bool = False
    mismatched: bool = False


@dataclass(frozen=True)
class Run:
    """kind: a name in the table given to `train`."""

    kind: str
    beta: float
    learning_rate: float
    seed: int
    data: Data
    epochs: int = 1


class Answers(NamedTuple):
    """A training set, the chosen answers first.

    ids: (answers, length). label: True for a chosen one. reference: log-probability, in nats. length: tokens,
    the end token included.
    """

    ids: Tensor
    label: Tensor
    reference: Tensor
    length: Tensor


class Bench:
    """A task's base model, and its data as token ids."""

    def __init__(self, task: Task, folder: Any, device: str):
        self.task = task
        self.device = device
        self.base: Base = load_base(folder, device)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        self.tokenizer: PreTrainedTokenizerBase = tokenizer
        self.pad = tokenizer.convert_tokens_to_ids(PAD)
        self.parts = task.split_problems()
        self._known: dict[tuple[Data, int], Answers] = {}

    def prompts(self, problems: Sequence[Problem]) -> Tensor:
        texts = [self.task.prompt_of(problem) for problem in problems]
        return self.tokenizer(texts, return_tensors="pt").input_ids.to(self.device)

    def sequences(self, rows: list[tuple[str, str]]) -> Tensor:
        """Token ids of prompts and answers, filled up on the right."""
        width = self.task.max_words + 1
        ids = []
        for prompt, answer in rows:
            words = [*answer.split(), EOS]
            ids.append(f"{prompt} {' '.join(words + [PAD] * (width - len(words)))}")
        return self.tokenizer(ids, return_tensors="pt").input_ids.to(self.device)

    def keep(self, data: Data, seed: int, rows: list[dict]) -> None:
        """Score the chosen and the rejected answers among `draw_rows`'s rows under the base model, once."""
        if (data, seed) in self._known:
            return
        if data.positives is None:
            sides = [[(row["prompt"], row[side]) for row in rows] for side in ("chosen", "rejected")]
        else:
            sides = [
                [(row["prompt"], row["completion"]) for row in rows if row["label"] == label]
                for label in (True, False)
            ]
        ids = self.sequences([pair for side in sides for pair in side])
        with torch.no_grad():
            reference, length = self.logprobs(None, ids[None])
        label = torch.arange(len(ids), device=self.device) < len(sides[0])
        self._known[data, seed] = Answers(ids, label, reference[0], length[0])

    def answers(self, data: Data, seed: int) -> Answers:
        """What was kept."""
        return self._known[data, seed]

    def logprobs(self, adapter: Adapter | None, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Of the answers of (runs, n, length), summed, and their lengths; (runs, n)."""
        prompt_length = ids.shape[-1] - self.task.max_words - 1
        mask = ids[..., prompt_length:] != self.pad
        return (token_logprobs(self.base, adapter, ids, prompt_length) * mask).sum(-1), mask.sum(-1).float()


def train(
    bench: Bench,
    kinds: Mapping[str, Kind],
    runs: Sequence[Run],
    answers: Sequence[Answers] | None = None,
    start: Adapter | None = None,
    reference: Adapter | None = None,
) -> Adapter:
    """The runs' adapters. All runs have the same kind of data.

    answers: of each run; None for those that were kept. start: where training begins; None for new adapters.
    reference: the adapter under which the answers' reference was scored; None for the base model.
    """
    order = {name: [i for i, run in enumerate(runs) if run.kind == name] for name in kinds}
    order = {name: numbers for name, numbers in order.items() if numbers}
    adapter = _trainable(start) if start else new_adapter(bench.base, [run.seed for run in runs])
    parameters = [p for pair in adapter.values() for p in pair]
    first, second = ([torch.zeros_like(p) for p in parameters] for _ in range(2))
    rate = torch.tensor([run.learning_rate for run in runs], device=bench.device)
    beta = torch.tensor([[run.beta] for run in runs], device=bench.device)
    answers = answers or [bench.answers(run.data, run.seed) for run in runs]
    ids, label, logps, length = (_stacked(field) for field in zip(*answers, strict=True))
    batches = [_batches(kinds[run.kind], run, own) for run, own in zip(runs, answers, strict=True)]
    steps, chosen = torch.tensor([len(taken) for taken, _ in batches], device=bench.device), batches[0][1]
    index = _stacked([taken for taken, _ in batches]).to(bench.device)
    for number in range(index.shape[1]):
        now = index[:, number]
        taken = ids.gather(1, now[..., None].expand(-1, -1, ids.shape[-1]))
        policy, _ = bench.logprobs(adapter, taken)
        step = Step(policy, *(x.gather(1, now) for x in (logps, label, length)), chosen)
        total = policy.new_zeros(())
        for name, numbers in order.items():
            kind = kinds[name]
            own = Step(*(x[numbers] if isinstance(x, Tensor) else x for x in step))
            if kind.mismatched:
                models = (_some(adapter, numbers), reference and _some(reference, numbers))
                own = own._replace(mismatched=_mismatched(bench, *models, taken[numbers]))
            total = total + kind.loss(own, beta[numbers]).sum()
        gradients = torch.autograd.grad(total, parameters)
        factor = torch.tensor([schedule(number, own) for own in steps.tolist()], device=bench.device)
        _adamw(parameters, gradients, first, second, number, rate * factor)
    return {name: (a.detach(), b.detach()) for name, (a, b) in adapter.items()}


def _trainable(adapter: Adapter) -> Adapter:
    """A copy."""
    return {name: tuple(x.clone().requires_grad_() for x in pair) for name, pair in adapter.items()}


def _some(adapter: Adapter, numbers: Sequence[int]) -> Adapter:
    """Those of some runs, without gradients."""
    return {name: (a[numbers].detach(), b[numbers].detach()) for name, (a, b) in adapter.items()}


def _stacked(fields: Sequence[Tensor]) -> Tensor:
    """Those of all runs, the shorter ones filled up with zeros that no step takes, or none that learns."""
    longest = max(map(len, fields))
    return torch.stack([torch.cat([x, x.new_zeros(longest - len(x), *x.shape[1:])]) for x in fields])


def _batches(kind: Kind, run: Run, answers: Answers) -> tuple[Tensor, int]:
    """Which answers each step takes, (steps, answers of a step), and how many of these are chosen ones."""
    total, positives = len(answers.label), int(answers.label.sum())
    rng = np.random.default_rng([run.seed, 7])
    steps = max(1, total // (2 * SIZE))
    count = max(1, round(2 * SIZE * positives / total))
    found = []
    fixed = rng.permutation(total)  # TRL's KTO trainer takes them in the same order every epoch
    for _ in range(run.epochs):
        if kind.by_chance:
            taken = np.resize(fixed, (steps, 2 * SIZE))
        else:
            upper = _repeated(rng, positives, steps * count)
            others = steps * (2 * SIZE - count)
            lower = upper if kind.paired else _repeated(rng, total - positives, others)
            taken = np.concatenate([upper.reshape(steps, -1), positives + lower.reshape(steps, -1)], 1)
        found.append(taken)
    return torch.from_numpy(np.concatenate(found)), count


def _repeated(rng: np.random.Generator, size: int, count: int) -> np.ndarray:
    """So many of `size`, each as often as the others, but for one more or less."""
    rounds = [rng.permutation(size) for _ in range(math.ceil(count / size))]
    return np.concatenate(rounds)[:count]


@torch.no_grad()
def _mismatched(bench: Bench, adapter: Adapter, reference: Adapter | None, ids: Tensor) -> Tensor:
    """Mean log-ratio of each prompt's answer taken from the one before it, at least as TRL estimates it."""
    cut = ids.shape[-1] - bench.task.max_words - 1
    other = torch.cat([ids[..., :cut], ids[..., cut:].roll(1, dims=1)], dim=-1)
    return (bench.logprobs(adapter, other)[0] - bench.logprobs(reference, other)[0]).mean(1)


def schedule(number: int, steps: int) -> float:
    """Factor of the learning rate: a tenth of warm-up, then half a cosine (transformers), then 0."""
    warm_up = int(0.1 * steps)
    if number < warm_up:
        return number / max(1, warm_up)
    done = min(1.0, (number - warm_up) / max(1, steps - warm_up))
    return max(0.0, 0.5 * (1 + math.cos(math.pi * done)))


@torch.no_grad()
def _adamw(
    parameters: list[Tensor],
    gradients: Sequence[Tensor],
    first: list[Tensor],
    second: list[Tensor],
    number: int,
    rate: Tensor,
) -> None:
    """A step of every run, without weight decay; gradients cut by each run's own norm."""
    norm = torch.stack([g.square().sum((1, 2)) for g in gradients]).sum(0).sqrt()
    factor = (MAX_NORM / (norm + 1e-6)).clamp(max=1)[:, None, None]
    one, two = BETAS
    for p, g, m, s in zip(parameters, gradients, first, second, strict=True):
        g = g * factor
        m.lerp_(g, 1 - one)
        s.mul_(two).addcmul_(g, g, value=1 - two)
        scale = (s / (1 - two ** (number + 1))).sqrt_().add_(EPS)
        p.sub_(rate[:, None, None] / (1 - one ** (number + 1)) * m / scale)


def sampled(bench: Bench, adapter: Adapter, part: str, seed: int) -> list[np.ndarray]:
    """Token ids of one answer a problem at temperature 1, by run; (problems, tokens)."""
    prompts = bench.prompts(bench.parts[part])
    runs = next(iter(adapter.values()))[0].shape[0]
    found = []
    for begin in range(0, runs, CHUNK):
        some = {
            name: (a[begin : begin + CHUNK], b[begin : begin + CHUNK]) for name, (a, b) in adapter.items()
        }
        drawn = sample(bench.base, some, prompts, bench.task.max_words + 1, seed)
        found += list(drawn.to(torch.int16).cpu().numpy())
    return found


def scores(task: Task, part: str, answers: np.ndarray) -> dict[str, float]:
    """The `summary` of answers as token ids, (problems, tokens)."""
    problems, tokenizer = _known(task.name)
    words = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    return summary(task, problems[part], [" ".join(words[i] for i in ids) for ids in answers.tolist()])


@functools.cache
def _known(name: str) -> tuple[dict[str, list[Problem]], PreTrainedTokenizerBase]:
    return TASKS[name].split_problems(), TASKS[name].make_tokenizer()
