"""What the sort costs when the effective batch and the number of processes grow.

    python -m benchmarks.scale

Runs the trainer's own code from the gathered scores to the coefficients, in one process, on rows as they
would arrive from all others; and works out the gather from its bytes. Both stand against the step that
they belong to: 64 samples on each process, of an 8B model.
"""

import math
import statistics
import time
from collections import defaultdict
from types import SimpleNamespace

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from axolotl_aot.config import AOTArgs
from axolotl_aot.training.trainers import AOTTrainer, AOTUnpairedTrainer

SAMPLES = 64  # pairs or answers of each process and step
REPEATS = 7

# The step: 6 FLOP per parameter and token for forward and backward, 2 for each of the two scoring passes.
PARAMETERS = 8e9
TOKENS = 512  # of a sequence
FLOPS = 400e12  # per second that a GPU reaches in bf16: 40% of an H100's peak
# The gather: a network of 25 GB/s (200 Gbit/s) for each process, and 20 us for each hop of the tree that
# messages this small take.
BANDWIDTH = 25e9
HOP = 20e-6


def simulated(trainer_cls: type, processes: int, **keys: object):
    """A trainer without a model: all that `_objective` looks at."""

    class Simulated(trainer_cls):
        def __init__(self):
            self.aot = AOTArgs(**keys)
            self.beta = 0.01
            self.args = SimpleNamespace(world_size=processes, process_index=processes // 2)
            self.state = SimpleNamespace(global_step=0)
            self.setup = SimpleNamespace(one_label_steps=0, adapter=None)
            self._metrics = {"train": defaultdict(list)}

        def _gather(self, rows: Tensor) -> Tensor:
            return self.everyone

    return Simulated()


def rows(trainer_cls: type, count: int, generator: torch.Generator) -> Tensor:
    """Scores as after some training, and the samples' positions; none is a copy."""
    if trainer_cls is AOTUnpairedTrainer:
        reference = -60 + 10 * torch.randn(count, 1, generator=generator)
        label = (torch.rand(count, 1, generator=generator) < 0.3).float()
        columns = [reference + torch.randn(count, 1, generator=generator), reference, label]
    else:
        reference = -60 + 10 * torch.randn(count, 2, generator=generator)
        columns = [reference + torch.randn(count, 2, generator=generator), reference]
    return torch.cat([*columns, torch.arange(count)[:, None]], dim=1)


def seconds(trainer_cls: type, processes: int, **keys: object) -> float:
    """From the gathered rows to the coefficients; the median of several."""
    generator = torch.Generator().manual_seed(0)
    trainer = simulated(trainer_cls, processes, **keys)
    everyone = rows(trainer_cls, processes * SAMPLES, generator)
    trainer.everyone = everyone.view(processes, SAMPLES, -1)
    own = list(trainer.everyone[processes // 2].split(SAMPLES // 8))
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        trainer._objective(own)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def gather_seconds(trainer_cls: type, processes: int) -> float:
    """On paper: the bytes of all rows through the network, and the hops."""
    columns = 5 if trainer_cls.paired else 4  # the last one is the position
    return processes * SAMPLES * columns * 4 / BANDWIDTH + HOP * math.log2(processes)


def step_seconds(trainer_cls: type) -> float:
    """On paper: scoring under policy and reference, and the training pass."""
    sequences = SAMPLES * (2 if trainer_cls.paired else 1)
    return sequences * TOKENS * PARAMETERS * (2 + 2 + 6) / FLOPS


def main() -> None:
    torch.set_num_threads(1)
    table = Table(title=f"{SAMPLES} samples a process and step, 8B model; times in ms")
    for name in ("rl", "options", "processes", "samples", "gather", "sort, coefficients", "step", "share"):
        table.add_column(name, justify="left" if name in ("rl", "options") else "right")
    cases = [
        (AOTTrainer, {}),
        (AOTUnpairedTrainer, {}),
        (AOTUnpairedTrainer, {"aot_dominance": "second"}),
        (AOTUnpairedTrainer, {"aot_sort": "soft"}),
    ]
    for trainer_cls, keys in cases:
        for processes in (8, 64, 1024):
            sort = seconds(trainer_cls, processes, **keys)
            gather, step = gather_seconds(trainer_cls, processes), step_seconds(trainer_cls)
            table.add_row(
                trainer_cls.rl,
                ", ".join(f"{k}: {v}" for k, v in keys.items()),
                f"{processes:,}",
                f"{processes * SAMPLES:,}",
                f"{1e3 * gather:.2f}",
                f"{1e3 * sort:.1f}",
                f"{1e3 * step:,.0f}",
                f"{(gather + sort) / step:.2%}",
            )
    Console().print(table)


if __name__ == "__main__":
    main()
