"""Reading what a trainer did."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from transformers import Trainer, TrainerCallback


def steps(trainer: Trainer) -> list[dict[str, float]]:
    """The trainer's log, one entry a step."""
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def column(trainer: Trainer, key: str) -> list[float]:
    return [entry[key] for entry in steps(trainer)]


def sequences(dataset) -> list[tuple[list[int], list[int]]]:
    columns = [c for c in ("chosen_ids", "rejected_ids", "completion_ids") if c in dataset.column_names]
    return [(row["prompt_ids"], row[column]) for row in dataset for column in columns]


def scored_as_reference(trainer) -> torch.Tensor:
    """As the trainer scores its training set under the reference, shape (sequences,)."""
    from axolotl_aot.scoring.reference_cache import TokenizedAnswer
    from axolotl_aot.scoring.scorer import collate

    answers = [TokenizedAnswer(*sequence) for sequence in sequences(trainer.train_dataset)]
    return trainer.reference.score(collate(answers, trainer.accelerator.device))


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
def plugins_undone(monkeypatch) -> Iterator[None]:
    """Takes back what axolotl's plugins and kernels do for the life of a process: they stay registered, Liger
    replaces names of transformers' modules, and axolotl rewrites the attention's class.
    """
    from axolotl.integrations.base import PluginManager
    from transformers.models.llama import modeling_llama

    monkeypatch.setattr(PluginManager.get_instance(), "plugins", {})
    for name in ("LlamaMLP", "LlamaRMSNorm", "apply_rotary_pos_emb"):
        monkeypatch.setattr(modeling_llama, name, getattr(modeling_llama, name))
    with unchanged(modeling_llama.LlamaAttention):
        yield


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
