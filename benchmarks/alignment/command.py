"""Run what is missing, and write the results.

Imports everything of `benchmarks.alignment`, click and rich.
"""

import contextlib
import functools
import hashlib
import os
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from string import Template
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, track

from benchmarks.alignment.base_model import write_base_model
from benchmarks.alignment.cells import Cell
from benchmarks.alignment.comparisons import STAGES
from benchmarks.alignment.figures import FIGURES
from benchmarks.alignment.plan import FULL, SMALL, SOFT_STRENGTH, Plan
from benchmarks.alignment.results import NotMeasured, Results
from benchmarks.alignment.runs import ENVIRONMENT, run_all
from benchmarks.alignment.sections import SECTIONS
from benchmarks.alignment.tasks import TASKS

HERE = Path(__file__).parent
PACKAGES = ("axolotl-aot", "axolotl", "trl", "transformers", "peft", "torch")
DPI = 120
NOT_YET = "Not measured yet.\n"
SMALL_PRINT = (
    "A small run, to see that the command works: its numbers mean nothing. What comes from the search and of "
    "rounds is read from the search.csv and the rounds.jsonl of the full one.\n\n"
)
CONSOLE = Console(stderr=True)


@click.command()
@click.option("--small", is_flag=True, help="Few cells of few steps, to see that it runs.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Where results are and go.")
@click.option("--workers", type=click.IntRange(min=1), default=os.cpu_count(), show_default=True)
@click.option(
    "stages",
    "--stage",
    type=click.Choice([stage.__name__ for stage in STAGES]),
    multiple=True,
    help="Only the cells of this one, once for each that is wanted; RESULTS.md is left to a run of all.",
)
def main(small: bool, out: Path | None, workers: int, stages: tuple[str, ...]) -> None:
    """Train and score all cells that have no result yet, and write RESULTS.md and its figures.

    Stopped at any moment it goes on where it was; RESULTS.md is written before each stage that has something
    left to run (but for --small), and at the end. Each task's base model is kept in OUT/work.
    """
    os.environ.update(ENVIRONMENT)
    plan = SMALL if small else FULL
    out = out or (Path("build/alignment-small") if small else HERE)
    out.mkdir(parents=True, exist_ok=True)
    results = Results(out / "results.jsonl")
    base_models = out / "work"
    bases = {task: _base_model(task, base_models / task, plan, results) for task in TASKS}
    for stage in STAGES:
        if stages and stage.__name__ not in stages:
            continue
        try:
            missing = results.missing(cell for cells in stage(plan, results).values() for cell in cells)
        except NotMeasured as error:
            raise click.ClickException(f"{stage.__name__} needs what is not there: {error}") from error
        if missing:
            if not (stages or small):
                write_results(plan, results, out, small)
            for result in _progress(
                stage.__name__, missing, run_all(missing, base_models, plan.scored, workers)
            ):
                results.add({**result, "base": bases[result["cell"]["data"]["task"]]})
    click.echo(results.path if stages else write_results(plan, results, out, small))


def _base_model(task: str, folder: Path, plan: Plan, results: Results) -> str:
    """The digest of the task's base model, which is trained where it is not there.

    Raises:
        click.ClickException: the results are of another one.
    """
    if not (folder / "tokenizer.json").is_file():  # what is written last
        bar = functools.partial(track, description=f"Training the base model of {task}", console=CONSOLE)
        write_base_model(TASKS[task], folder, plan.base_steps, bar)
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()[:12]
    if results.bases(task) - {digest}:
        raise click.ClickException(
            f"{results.path} is of another base model than {folder}, which another machine may have "
            "trained otherwise from the same seed: delete one of them"
        )
    return digest


def _progress(name: str, cells: list[Cell], results: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The results, as they come, with a bar."""
    columns = (TextColumn(name), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=CONSOLE) as progress:
        bar = progress.add_task(name, total=len(cells))
        for result in results:
            yield result
            progress.advance(bar)


def measured(plan: Plan, results: Results) -> dict[str, str]:
    """The tables and findings, by their names in template.md; what has no results yet is left open."""
    parts = {}
    for name, section in SECTIONS.items():
        try:
            shown, findings = section(plan, results)
        except NotMeasured:
            shown = findings = NOT_YET
        parts |= {f"{name}_table": shown, f"{name}_findings": findings}
    return parts


def write_results(plan: Plan, results: Results, out: Path, small: bool) -> Path:
    """RESULTS.md and its figures."""
    for name, draw in FIGURES.items():
        with contextlib.suppress(NotMeasured):
            draw(plan, results).savefig(out / f"{name}.png", dpi=DPI)
    text = Template((HERE / "template.md").read_text("utf-8")).substitute(
        measured(plan, results),
        command="python -m benchmarks.alignment" + (" --small" if small else ""),
        versions=", ".join(f"{package} {version(package)}" for package in PACKAGES),
        soft_strength=f"{SOFT_STRENGTH:g}",
    )
    path = out / "RESULTS.md"
    path.write_text((SMALL_PRINT if small else "") + text, "utf-8")
    return path
