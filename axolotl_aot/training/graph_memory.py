"""What a forward pass's graph takes of a device's memory, and how much there is for such graphs.

A graph is what a forward pass keeps for its backward pass. On a GPU the allocator knows all that has to be
known. On a CPU nothing does, and a process that takes too much is killed: there a graph's saved tensors are
counted, and few graphs are let in.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

# Of what is free on a GPU, and of what is available on a CPU; and there no more than so many bytes.
GPU_SHARE = 0.75
CPU_SHARE = 0.125
CPU_BYTES = 512 * 2**20


@dataclass
class Measured:
    """Bytes that were taken; known when what was measured has ended."""

    bytes: int = 0


class GPUMemory:
    """Of a CUDA device, by torch's allocator."""

    def __init__(self, device: torch.device, processes: int):
        # some of torch's functions want the number, which a device need not have
        self._device = torch.cuda.current_device() if device.index is None else device.index

    def free(self) -> float:
        """Bytes that graphs and a training pass may take together: a share, since memory is fragmented."""
        free, total = torch.cuda.mem_get_info(self._device)
        reserved = torch.cuda.memory_reserved(self._device)
        limit = int(torch.cuda.get_per_process_memory_fraction(self._device) * total)
        unused = reserved - torch.cuda.memory_allocated(self._device)
        return GPU_SHARE * (min(free, limit - reserved) + unused)

    @contextmanager
    def graph(self, model: nn.Module) -> Iterator[Measured]:
        """Measure what a forward pass of the model leaves behind."""
        before = torch.cuda.memory_allocated(self._device)
        measured = Measured()
        yield measured
        measured.bytes = torch.cuda.memory_allocated(self._device) - before

    @contextmanager
    def training_pass(self, bound: bool) -> Iterator[Measured]:
        """Measure the most that a forward and backward pass takes at a time.

        Only a new peak tells exactly. Where there was a higher one before, the pass took less than what
        would have been needed for that: 0, or, with `bound`, this upper bound. The peak is not reset, as
        others read it.
        """
        before = torch.cuda.memory_allocated(self._device)
        peak_before = torch.cuda.max_memory_allocated(self._device)
        measured = Measured()
        yield measured
        peak = torch.cuda.max_memory_allocated(self._device)
        if bound or peak > peak_before:
            measured.bytes = peak - before


class CPUMemory:
    """Of a CPU, shared by processes."""

    def __init__(self, device: torch.device, processes: int):
        self._processes = processes

    def free(self) -> float:
        """Bytes that graphs may take; what a training pass takes is left out of it already."""
        return min(CPU_SHARE * psutil.virtual_memory().available, CPU_BYTES) / self._processes

    @contextmanager
    def graph(self, model: nn.Module) -> Iterator[Measured]:
        """Measure what a forward pass of the model saves, its weights apart; of a checkpointed layer that is
        its input. Storage that is shared counts once.
        """
        weights = {StorageWeakRef(p.untyped_storage()) for p in model.parameters()}
        saved: dict[StorageWeakRef, int] = {}

        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            saved[StorageWeakRef(storage)] = storage.nbytes()
            return tensor

        measured = Measured()
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            yield measured
        # a graph within the pass may have come and gone, as that of a chunk of logits
        measured.bytes = sum(
            size for storage, size in saved.items() if storage not in weights and not storage.expired()
        )

    @contextmanager
    def training_pass(self, bound: bool) -> Iterator[Measured]:
        """Nothing: a share of the memory is far from all of it."""
        yield Measured()


# By type of device; without graphs on any other.
MEMORY = {"cuda": GPUMemory, "cpu": CPUMemory}
