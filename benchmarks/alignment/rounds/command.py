"""Follow the courses that have no result yet, stage by stage. Imports click, and everything beside it."""

import time
from collections.abc import Mapping
from pathlib import Path

import click
import torch

from benchmarks.alignment.batched.kinds import CONTENDERS
from benchmarks.alignment.batched.training import Bench, Kind, sampled, scores
from benchmarks.alignment.rounds.course import Course, follow
from benchmarks.alignment.rounds.plan import STAGES, groups
from benchmarks.alignment.rounds.records import PATH, append, read
from benchmarks.alignment.tasks import TASKS

PARTS = ("validation", "test")


@click.command()
@click.argument("bases", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), default=PATH, show_default=True)
@click.option("--task", type=click.Choice(list(TASKS)), default="sorting", show_default=True)
@click.option("--stage", "stages", multiple=True, type=click.Choice(list(STAGES)), help="Default: all.")
@click.option("--device", default="cuda" if torch.cuda.is_available() else "cpu", show_default=True)
@click.option("--group", type=int, default=30, show_default=True, help="Courses followed at once.")
@click.option("--seconds", type=float, default=float("inf"), help="No group begins after these.")
def main(
    bases: Path, out: Path, task: str, stages: tuple[str, ...], device: str, group: int, seconds: float
) -> None:
    """Rounds on the answers of the base model in BASES/TASK; goes on where it was stopped."""
    began = time.monotonic()
    bench = Bench(TASKS[task], bases / task, device)
    for name in stages or STAGES:
        known = read(out)
        missing = [course for course in STAGES[name](known, task) if course not in known]
        for some in groups(dict.fromkeys(missing), group):
            if time.monotonic() - began > seconds:
                return
            for course, rounds in zip(some, followed(bench, CONTENDERS, some), strict=True):
                append(out, course, rounds)
            click.echo(f"{time.monotonic() - began:6.0f} s  {name}: {len(some)} courses")


def followed(bench: Bench, kinds: Mapping[str, Kind], courses: list[Course]) -> list[list[dict]]:
    """By course and round."""
    found: list[list[dict]] = [[] for _ in courses]
    for done in follow(bench, kinds, courses):
        answers = {part: sampled(bench, done.adapter, part, 0) for part in PARTS}
        for i, rounds in enumerate(found):
            scored = {part: scores(bench.task, part, own[i]) for part, own in answers.items()}
            rounds.append({"pairs": done.pairs[i], "malformed": done.malformed[i], **scored})
    return found
