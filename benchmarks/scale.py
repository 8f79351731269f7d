"""What the sort costs when the effective batch and the number of processes grow.

    python -m benchmarks.scale

Times the objective, from the gathered scores to the coefficients and metrics, on as many samples as would
arrive from all processes, on a GPU where there is one; and works out the gather from its bytes. Both stand
against the step that they belong to: 64 samples on each process, of an 8B model.
"""

import math
import statistics
import time

import torch
from rich.console import Console
from rich.table import Table

from axolotl_aot.config import AOTArgs
from axolotl_aot.training.gathering import in_order
from axolotl_aot.training.objective import Objective, PairedObjective, Scores, UnpairedObjective
from axolotl_aot.training.score_checks import require_finite

SAMPLES = 64  # pairs or answers of each process and step
REPEATS = 7
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CASES = [
    (PairedObjective, {}),
    (UnpairedObjective, {}),
    (UnpairedObjective, {"aot_dominance": "second"}),
    (UnpairedObjective, {"aot_sort": "soft"}),
    (PairedObjective, {"aot_entropy": 1.5}),
    (UnpairedObjective, {"aot_entropy": 1.5}),
    (UnpairedObjective, {"aot_anchor": 1.0, "aot_penalty": "sigmoid"}),
]

# The step: 6 FLOP per parameter and token for forward and backward, 2 for each of the two scoring passes.
PARAMETERS = 8e9
TOKENS = 512  # of a sequence
FLOPS = 400e12  # per second that a GPU reaches in bf16: 40% of an H100's peak
# The gather: a network of 25 GB/s (200 Gbit/s) for each process, and 20 us for each hop of the tree that
# messages this small take.
BANDWIDTH = 25e9
HOP = 20e-6


def gathered(objective: Objective, samples: int) -> Scores:
    """Scores of a step's samples as after some training, as they arrive from all processes."""
    generator = torch.Generator().manual_seed(0)
    each = objective.sequences_per_sample
    answers = samples * each
    reference = -60 + 10 * torch.randn(answers, generator=generator)
    paired = torch.arange(answers) % 2 == 0
    return Scores(
        policy=(reference + torch.randn(answers, generator=generator)).to(DEVICE),
        reference=reference.to(DEVICE),
        label=(paired if objective.samples.paired else torch.rand(answers, generator=generator) < 0.3).to(
            DEVICE
        ),
        position=torch.randperm(samples, generator=generator).repeat_interleave(each).to(DEVICE),
    )


def seconds(objective: Objective, processes: int) -> float:
    """What a process does with the gathered scores: order, loss, coefficients, metrics; median of several."""
    everyone = gathered(objective, processes * SAMPLES)
    times = []
    for _ in range(REPEATS):
        start = (
            time.perf_counter()
        )  # what is measured ends with numbers on the CPU, so that nothing is left to run
        scores = everyone.of(in_order(everyone, objective.sequences_per_sample))
        require_finite(scores, step=1)
        objective.loss_and_gradient(scores)
        objective.metrics(scores)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def gather_seconds(objective: Objective, processes: int) -> float:
    """On paper: the bytes of all scores through the network, and the hops."""
    columns = 4 * objective.sequences_per_sample  # policy, reference, label and position
    return processes * SAMPLES * columns * 4 / BANDWIDTH + HOP * math.log2(processes)


def step_seconds(objective: Objective) -> float:
    """On paper: scoring under policy and reference, and the training pass."""
    return SAMPLES * objective.sequences_per_sample * TOKENS * PARAMETERS * (2 + 2 + 6) / FLOPS


def main() -> None:
    torch.set_num_threads(1)
    table = Table(title=f"{SAMPLES} samples a process and step, 8B model; times in ms ({DEVICE})")
    for name in ("rl", "options", "processes", "samples", "gather", "sort, coefficients", "step", "share"):
        table.add_column(name, justify="left" if name in ("rl", "options") else "right")
    for objective_class, keys in CASES:
        objective = objective_class(AOTArgs(**keys), beta=0.01)
        for processes in (8, 64, 1024):
            sort = seconds(objective, processes)
            gather, step = gather_seconds(objective, processes), step_seconds(objective)
            table.add_row(
                objective.rl,
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
