"""Which micro-batches' graphs are kept from scoring to training, so that one forward pass does for both.

A step's scores take a forward pass of each micro-batch, and so does each one's backward pass. Where the
memory holds the first one's graph, which under gradient checkpointing is the layers' inputs only, the second
one is not needed. How many graphs that is, is learned from a run's first step, which keeps none.

Whether a graph is kept must change the time and nothing else. So none is, where a forward pass draws random
numbers (dropout, noise), as scores are without those; and none, where forward passes exchange weights, as
processes may have room for different numbers of graphs.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from accelerate.utils import DistributedType
from axolotl.utils.logging import get_logger
from transformers import Trainer

from axolotl_aot.training.graph_memory import MEMORY

LOG = get_logger(__name__)

DDP = (DistributedType.MULTI_GPU, DistributedType.MULTI_CPU)
# By engine, how many of a step's last micro-batches run forward in their training pass in any case. DDP has
# to be told in a forward pass that its backward pass will exchange gradients, after all other ones.
ALWAYS_LAST = {DistributedType.NO: 0, **dict.fromkeys(DDP, 1)}


def _other_parallelism(trainer: Trainer) -> bool:
    config = trainer.accelerator.parallelism_config
    return config is not None and config.non_data_parallel_size > 1


# Runs that keep no graph, by the reason.
NONE_KEPT: dict[str, Callable[[Trainer], bool]] = {
    "forward passes exchange weights": lambda t: t.accelerator.distributed_type not in ALWAYS_LAST,
    "forward passes exchange activations": _other_parallelism,
    "activations are offloaded": lambda t: bool(t.args.activation_offloading),
    "the device does not tell its memory": lambda t: t.accelerator.device.type not in MEMORY,
}


class KeptGraphs:
    """How many graphs a trainer's run may keep; learns from the passes that it is told of."""

    def __init__(self, trainer: Trainer):
        accelerator = trainer.accelerator
        self._device = accelerator.device
        self._model = trainer.model
        self._always_last = ALWAYS_LAST.get(accelerator.distributed_type, 0)
        self._memory = None
        self._graph_bytes = 0.0  # of a token, the most that was seen; 0 before
        self._pass_bytes, self._pass_tokens = 0, 1  # of the training pass that took most
        self._share = 1.0
        reasons = [reason for reason, holds in NONE_KEPT.items() if holds(trainer)]
        if reasons:
            LOG.debug("no graph is kept from scoring to training: %s", reasons[0])
        else:
            self._memory = MEMORY[self._device.type](self._device, accelerator.num_processes)

    def count(self, tokens: list[int]) -> int:
        """How many graphs to keep, beginning with the second micro-batch's, which follows the first one's
        training pass.

        tokens: of a step's micro-batches in order, padding included where they are padded.
        """
        if self._memory is None or not self._graph_bytes:
            return 0
        # while all of them are held, the first micro-batch is trained
        first = self._pass_bytes * max(1, tokens[0] / self._pass_tokens)
        left = self._share * (self._memory.free() - first)
        count = 0
        for number in tokens[1 : len(tokens) - self._always_last]:
            left -= self._graph_bytes * number
            if left < 0:
                break
            count += 1
        LOG.debug("graphs kept from scoring to training: %d of %d", count, len(tokens) - 1)
        return count

    @contextmanager
    def forward_pass(self, tokens: int) -> Iterator[None]:
        """Learn from a forward pass with a graph, of so many tokens."""
        if self._memory is None:
            yield
            return
        before = self._random_state()
        with self._memory.graph(self._model) as measured:
            yield
        self._graph_bytes = max(self._graph_bytes, measured.bytes / tokens)
        if not torch.equal(before, self._random_state()):
            LOG.debug("no graph is kept from scoring to training: forward passes draw random numbers")
            self._memory = None

    @contextmanager
    def first_training_pass(self, tokens: int) -> Iterator[None]:
        """Learn from the first training pass of a step, of so many tokens."""
        if self._memory is None:
            yield
            return
        with self._memory.training_pass(bound=not self._pass_bytes) as measured:
            yield
        if measured.bytes > self._pass_bytes:
            self._pass_bytes, self._pass_tokens = measured.bytes, tokens

    def out_of_memory(self) -> None:
        """Keep less from now on."""
        self._share /= 2
        LOG.warning(
            "out of memory with graphs kept from scoring to training: from now on fewer are kept, and the "
            "micro-batches of this step that it concerns are computed twice",
            main_process_only=False,
        )

    def _random_state(self) -> torch.Tensor:
        """Of the generators that a forward pass draws from."""
        states = [torch.get_rng_state()]
        if self._device.type == "cuda":
            states.append(torch.cuda.get_rng_state(self._device))
        return torch.cat(states)
