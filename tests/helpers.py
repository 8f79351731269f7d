"""Reading what a trainer did."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from transformers import Trainer, TrainerCallback


def steps(trainer: Trainer) -> list[dict[str, float]]:
    """The trainer's log, one entry a step."""
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def column(trainer: Trainer, key: str) -> list[float]:
    return [entry[key] for entry in steps(trainer)]


class Snapshots(TrainerCallback):
    """Parameters before, and gradients after, the backward passes of every step."""

    def __init__(self) -> None:
        self.parameters: list[dict] = []
        self.gradients: list[dict] = []

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        self.parameters.append({n: p.detach().clone() for n, p in model.named_parameters()})

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        # gradients are clipped by now: the tests set max_grad_norm high
        self.gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})


@contextmanager
def unchanged(*kinds: type) -> Iterator[None]:
    """Takes back what is written to classes meanwhile; axolotl rewrites attention for a process's life."""
    before = [dict(vars(kind)) for kind in kinds]
    try:
        yield
    finally:
        for kind, names in zip(kinds, before, strict=True):
            for name in set(vars(kind)) - set(names):
                delattr(kind, name)
            kind.forward = names["forward"]


@contextmanager
def counting_forwards(model) -> Iterator[list[bool]]:
    """Collects, a forward pass each, whether it ran in training mode."""
    seen: list[bool] = []
    handle = model.register_forward_pre_hook(lambda module, args: seen.append(module.training))
    try:
        yield seen
    finally:
        handle.remove()


@contextmanager
def counting_calls(function: Callable) -> Iterator[list[None]]:
    """Collects an entry for each call of a function, by whatever name; of this thread."""
    calls: list[None] = []

    def profile(frame, event, argument):
        if event == "call" and frame.f_code is function.__code__:
            calls.append(None)

    sys.setprofile(profile)
    try:
        yield calls
    finally:
        sys.setprofile(None)
