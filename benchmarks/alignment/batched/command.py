"""Run the search, stage by stage, as far as the time goes.

Imports click, and everything beside it.
"""

import multiprocessing
import time
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path

import click
import torch

from benchmarks.alignment.batched.kinds import KINDS
from benchmarks.alignment.batched.records import append, read
from benchmarks.alignment.batched.search import FRESH, STAGES, choices, groups
from benchmarks.alignment.batched.training import Bench, Run, sampled, scores, train
from benchmarks.alignment.choices import write_choices
from benchmarks.alignment.preferences import Data, draw_rows
from benchmarks.alignment.tasks import TASKS


@click.command()
@click.argument("bases", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("out", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--device", default="cuda" if torch.cuda.is_available() else "cpu", show_default=True)
@click.option("--seconds", type=float, default=float("inf"), help="No group of runs begins after these.")
@click.option("--group", type=int, default=240, show_default=True, help="Runs trained at once.")
@click.option(
    "--workers", type=int, default=12, show_default=True, help="Processes that draw data and score."
)
@click.option("--stage", "stages", multiple=True, type=click.Choice(list(STAGES)))
@click.option("--choices", "chosen", type=click.Path(dir_okay=False, path_type=Path), help="Write them here.")
@click.option("--every", type=int, default=1, help="Take one group of so many, to try the command.")
def main(
    bases: Path,
    out: Path,
    device: str,
    seconds: float,
    group: int,
    workers: int,
    stages: tuple[str, ...],
    chosen: Path | None,
    every: int,
) -> None:
    """Search with the base models in BASES/TASK; results go to the CSV file OUT, a run a line.

    A run that OUT has a result of is not run again.
    """
    began = time.monotonic()
    results = read(out)
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        benches = {name: Bench(task, bases / name, device) for name, task in TASKS.items()}
        drawn: dict[tuple[Data, int], Future] = {}
        for name in stages or STAGES:
            done = {result["run"] for result in results}
            runs = [run for run in STAGES[name](results) if run not in done]
            for key in dict.fromkeys((run.data, run.seed) for run in runs):
                if key not in drawn:
                    drawn[key] = pool.submit(draw_rows, key[0], key[0].positives is None, key[1])
            pending: list[tuple[list[Run], dict[str, list[Future]]]] = []
            for number, some in enumerate(groups(runs, group)):
                if number % every or time.monotonic() - began > seconds:
                    continue
                bench = benches[some[0].data.task]
                for key in dict.fromkeys((run.data, run.seed) for run in some):
                    bench.keep(*key, drawn[key].result())
                adapter = train(bench, KINDS, some)
                parts = {
                    part: [
                        pool.submit(scores, bench.task, part, own) for own in sampled(bench, adapter, part, 0)
                    ]
                    for part in (("validation", "test") if some[0].seed in FRESH else ("validation",))
                }
                pending.append((some, parts))
                click.echo(f"{time.monotonic() - began:6.1f} s  {name}: {len(some)} runs of {some[0].data}")
            scored = [
                {"run": run, **{part: futures[i].result() for part, futures in parts.items()}}
                for some, parts in pending
                for i, run in enumerate(some)
            ]
            append(out, scored)
            results += scored
            click.echo(f"{time.monotonic() - began:6.1f} s  {name}: {len(runs)} runs")
    if chosen:
        write_choices(choices(results), chosen)
