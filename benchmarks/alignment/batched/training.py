"""Many runs trained and scored at once.

As `axolotl train` does it with the YAML of `benchmarks.alignment.cells`: AdamW, gradients cut to a norm of 1,
a cosine schedule with a tenth of warm-up, the batches of a random order. Which pairs meet in a batch, LoRA's
first matrices and the sampling noise are other draws than those of axolotl's runs. Imports NumPy, torch,
`benchmarks.alignment.preferences`, `tasks`, and `losses` and `model` beside it.
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

from axolotl_aot.quickstart import EOS, PAD, Problem
from benchmarks.alignment.batched.losses import Loss, Step
from benchmarks.alignment.batched.model import Adapter, Base, load_base, new_adapter, sample, token_logprobs
from benchmarks.alignment.preferences import Data
from benchmarks.alignment.tasks import TASKS, Task

SIZE = 64  # pairs of a step, or half of its answers
CHUNK = 64  # runs whose rewards are sampled at once
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


class Bench:
    """A task's base model, and its data as token ids."""

    def __init__(self, task: Task, folder: Any, device: str):
        self.task = task
        self.device = device
        self.base: Base = load_base(folder, device)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        self.tokenizer: PreTrainedTokenizerBase = tokenizer
        self.pad, self.end = (tokenizer.convert_tokens_to_ids(token) for token in (PAD, EOS))
        self.parts = task.split_problems()
        self._ids: dict[tuple[Data, int], tuple[Tensor, Tensor]] = {}

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
        """The token ids of chosen and of rejected answers among `draw_rows`'s rows."""
        if (data, seed) in self._ids:
            return
        if data.positives is None:
            sides = [[(row["prompt"], row[side]) for row in rows] for side in ("chosen", "rejected")]
        else:
            sides = [
                [(row["prompt"], row["completion"]) for row in rows if row["label"] == label]
                for label in (True, False)
            ]
        self._ids[data, seed] = tuple(self.sequences(side) for side in sides)

    def ids(self, data: Data, seed: int) -> tuple[Tensor, Tensor]:
        """What was kept."""
        return self._ids[data, seed]

    def logprobs(self, adapter: Adapter | None, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Of the answers of (runs, n, length), summed, and their lengths; (runs, n)."""
        prompt_length = ids.shape[-1] - self.task.max_words - 1
        mask = ids[..., prompt_length:] != self.pad
        return (token_logprobs(self.base, adapter, ids, prompt_length) * mask).sum(-1), mask.sum(-1).float()


def train(bench: Bench, kinds: Mapping[str, Kind], runs: Sequence[Run]) -> Adapter:
    """All runs have the same number of steps, and the same kind of data."""
    order = {name: [i for i, run in enumerate(runs) if run.kind == name] for name in kinds}
    order = {name: numbers for name, numbers in order.items() if numbers}
    adapter = new_adapter(bench.base, [run.seed for run in runs])
    parameters = [p for pair in adapter.values() for p in pair]
    first, second = ([torch.zeros_like(p) for p in parameters] for _ in range(2))
    rate = torch.tensor([run.learning_rate for run in runs], device=bench.device)
    beta = torch.tensor([[run.beta] for run in runs], device=bench.device)
    batches = [_batches(bench, kinds[run.kind], run) for run in runs]
    ids = torch.stack([b[0] for b in batches])  # (runs, answers, length)
    label = torch.stack([b[1] for b in batches])
    steps, chosen = len(batches[0][2]), batches[0][3]
    index = torch.stack([b[2] for b in batches])  # (runs, steps, answers of a step)
    with torch.no_grad():
        scored = [bench.logprobs(None, some) for some in ids.split(CHUNK)]
        reference, length = (torch.cat(parts) for parts in zip(*scored, strict=True))
    for number in range(steps):
        now = index[:, number]
        taken = ids.gather(1, now[..., None].expand(-1, -1, ids.shape[-1]))
        policy, _ = bench.logprobs(adapter, taken)
        step = Step(policy, *(x.gather(1, now) for x in (reference, label, length)), chosen)
        total = policy.new_zeros(())
        for name, numbers in order.items():
            kind = kinds[name]
            own = Step(*(x[numbers] if isinstance(x, Tensor) else x for x in step))
            if kind.mismatched:
                some = {key: (a[numbers].detach(), b[numbers].detach()) for key, (a, b) in adapter.items()}
                own = own._replace(mismatched=_mismatched(bench, some, taken[numbers]))
            total = total + kind.loss(own, beta[numbers]).sum()
        gradients = torch.autograd.grad(total, parameters)
        _adamw(parameters, gradients, first, second, number, rate * schedule(number, steps))
    return {name: (a.detach(), b.detach()) for name, (a, b) in adapter.items()}


def _batches(bench: Bench, kind: Kind, run: Run) -> tuple[Tensor, Tensor, Tensor, int]:
    """Token ids, labels, which of them each step takes, and how many of these are chosen ones."""
    chosen, rejected = bench.ids(run.data, run.seed)
    rng = np.random.default_rng([run.seed, 7])
    total = len(chosen) + len(rejected)
    steps = total // (2 * SIZE)
    share = 0.5 if run.data.positives is None else run.data.positives
    count = max(1, round(2 * SIZE * share))
    found = []
    fixed = rng.permutation(total)  # TRL's KTO trainer takes them in the same order every epoch
    for _ in range(run.epochs):
        if kind.by_chance:
            taken = fixed[: steps * 2 * SIZE].reshape(steps, -1)
        else:
            upper = _repeated(rng, len(chosen), steps * count)
            lower = upper if kind.paired else _repeated(rng, len(rejected), steps * (2 * SIZE - count))
            taken = np.concatenate([upper.reshape(steps, -1), len(chosen) + lower.reshape(steps, -1)], 1)
        found.append(taken)
    label = torch.arange(total, device=bench.device) < len(chosen)
    index = torch.from_numpy(np.concatenate(found)).to(bench.device)
    return torch.cat([chosen, rejected]), label, index, count


def _repeated(rng: np.random.Generator, size: int, count: int) -> np.ndarray:
    """So many of `size`, each as often as the others, but for one more or less."""
    rounds = [rng.permutation(size) for _ in range(math.ceil(count / size))]
    return np.concatenate(rounds)[:count]


@torch.no_grad()
def _mismatched(bench: Bench, adapter: Adapter, ids: Tensor) -> Tensor:
    """Mean log-ratio of each prompt's answer taken from the one before it, at least as TRL estimates it."""
    cut = ids.shape[-1] - bench.task.max_words - 1
    other = torch.cat([ids[..., :cut], ids[..., cut:].roll(1, dims=1)], dim=-1)
    return (bench.logprobs(adapter, other)[0] - bench.logprobs(None, other)[0]).mean(1)


def schedule(number: int, steps: int) -> float:
    """Factor of the learning rate: a tenth of warm-up, then half a cosine (transformers)."""
    warm_up = int(0.1 * steps)
    if number < warm_up:
        return number / max(1, warm_up)
    done = (number - warm_up) / max(1, steps - warm_up)
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


def answers(bench: Bench, adapter: Adapter, part: str, seed: int) -> list[np.ndarray]:
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
    """As `benchmarks.alignment.scores` has them; answers: token ids (problems, tokens)."""
    problems, tokenizer = _known(task.name)
    words = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    rewards, idle, lengths = [], [], []
    for problem, ids in zip(problems[part], answers.tolist(), strict=True):
        text = [words[i] for i in ids]
        length = text.index(EOS) if EOS in text else task.max_words
        lengths.append(length)
        answer = text[:length] if EOS in text else None
        if answer is None or not task.is_well_formed(problem, answer):
            rewards.append(None)
            continue
        rewards.append(task.reward(problem, answer))
        idle.append(task.idle_words(problem, answer))
    values = np.sort([0.0 if r is None else r for r in rewards])
    return {
        "reward": float(values.mean()),
        "worst": float(values[: round(0.1 * len(values))].mean()),
        "malformed": float(np.mean([r is None for r in rewards])),
        "length": float(np.mean(lengths)),
        "idle": float(np.mean(idle)) if idle else 0.0,
    }


@functools.cache
def _known(name: str) -> tuple[dict[str, list[Problem]], PreTrainedTokenizerBase]:
    return TASKS[name].split_problems(), TASKS[name].make_tokenizer()
