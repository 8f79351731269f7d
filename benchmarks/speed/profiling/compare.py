"""A step of each contender by kinds of kernels, and the table."""

import gc
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed.cases import OURS, Case
from benchmarks.speed.compare_steps import chosen_cases
from benchmarks.speed.memory import limit
from benchmarks.speed.profiling.recorder import Recorded, Recorder, peak_flops
from benchmarks.speed.steps import Clock
from benchmarks.speed.tables import Result, Results, markdown
from benchmarks.speed.tokens import rows
from benchmarks.speed.trainers import make_trainer

HEADER = ("kind", "s", "share")
DEFAULTS = {"cases": ["fixed"], "contenders": [OURS], "steps": 1}


def main(given: dict[str, Any], results: Results) -> None:
    """Profile one step of each case and contender, in this process; a table of each."""
    if "memory_limit" in given:
        limit(given["memory_limit"])
    for name, case in chosen_cases({**DEFAULTS, **given}).items():
        for contender in case.contenders:
            gc.collect()
            torch.cuda.empty_cache()
            trace = None
            if "trace" in given:
                given["trace"].mkdir(parents=True, exist_ok=True)
                trace = given["trace"] / f"{name}, {contender}.json.gz"
            recorded, seconds = profile_step(contender, case, given.get("data"), trace)
            found = _figures(recorded, seconds, peak_flops())
            results.add({"case": name, "trainer": contender, **found})
            print(table(found), flush=True)


def profile_step(
    contender: str, case: Case, data: Path | None, trace: Path | None = None
) -> tuple[Recorded, float]:
    """What the last step was spent on, and the seconds of one without the profiler."""
    longer = replace(case, steps=case.steps + 1)
    clock, recorder = Clock(), Recorder(case.steps + 1, trace)
    with tempfile.TemporaryDirectory() as folder:
        tokens = rows(longer, data, longer.pairs)
        trainer, _ = make_trainer(contender, longer, tokens, Path(folder))
        for callback in (clock, recorder):
            trainer.add_callback(callback)
        trainer.train()
    clock.ends.pop()  # of the step under the profiler
    return recorder.recorded, clock.seconds


def _figures(recorded: Recorded, seconds: float, peak: float) -> Result:
    """seconds: of a step without the profiler; busy: of all kernels under it; shares of the busy time."""
    busy = sum(recorded.kinds.values())
    products = recorded.kinds.get("matrix products", 0)
    return {
        "seconds": seconds,
        "profiled_seconds": recorded.seconds,
        "busy": busy,
        "kinds": recorded.kinds,
        "top": recorded.top,
        "waits": recorded.waits,
        "flops": recorded.flops,
        "peak": peak,
        "products_of_peak": recorded.flops / products / peak if products else 0.0,
        "step_of_peak": recorded.flops / seconds / peak,
    }


def table(found: Result) -> str:
    """By kind, in seconds and as a share of all kernels' time; and what was reached of the measured peak."""
    kinds = sorted(found["kinds"], key=found["kinds"].get, reverse=True)
    lines = [
        [kind, f"{found['kinds'][kind]:.3f}", f"{found['kinds'][kind] / found['busy']:.0%}"] for kind in kinds
    ]
    lines += [
        ["all kernels", f"{found['busy']:.3f}", "100%"],
        ["a step without the profiler", f"{found['seconds']:.3f}", ""],
    ]
    reached = (
        f"Peak of a large matrix product: {found['peak'] / 1e12:.3g} TFLOP/s. Of it matrix products "
        f"reach {found['products_of_peak']:.0%} while they run, {found['step_of_peak']:.0%} over a step.\n"
    )
    return markdown(HEADER, lines) + "\n" + reached
