"""All contenders in turn, as often as asked for, and the table."""

import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.speed.cases import Case
from benchmarks.speed.command_line.pairs import write_pairs
from benchmarks.speed.command_line.runs import train
from benchmarks.speed.command_line.yamls import CONTENDERS, DEFAULT, Run, keys_of, read_settings
from benchmarks.speed.options import of_a_case, require_known
from benchmarks.speed.tables import Result, Results, markdown, megabytes, number, ratio

REPEATS = 2
OF_A_RUN = ("adapter", "attention", "accumulation", "steps", "sequence_len", "checkpointing")
OF_A_MODEL = ("model", "vocabulary")
HEADER = (
    *("run", "train_runtime, s", "s / step without the first", "whole command, s", "MB above the model"),
    *("MB in all", "time", "step", "memory"),
)
MEASURED = ("train_runtime", "seconds", "command_seconds", "bytes", "peak_bytes")


def main(given: dict[str, Any], results: Results) -> None:
    """Run all contenders on each micro-batch; a table of each."""
    contenders = given.get("contenders", DEFAULT)
    require_known(contenders, CONTENDERS)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        keys = _keys(given, folder)
        for size in given.get("micro_batch", [Run.micro_batch]):
            run = Run(micro_batch=size, **keys)
            data = write_pairs(folder / f"pairs-{size}.jsonl", run, given.get("data"))
            found: dict[str, list[Result]] = {contender: [] for contender in contenders}
            for repeat in range(given.get("repeats", REPEATS)):
                for contender, runs in found.items():
                    with tempfile.TemporaryDirectory(dir=folder) as own:
                        result = train(keys_of(contender, run, data, Path(own)), Path(own))
                    head = {"run": contender, "micro_batch": size, "repeat": repeat}
                    runs.append(results.add({**head, **result}))
            print(table(found), flush=True)


def _keys(given: dict[str, Any], folder: Path) -> dict[str, Any]:
    keys = {name: given[name] for name in OF_A_RUN if name in given}
    case = Case(**of_a_case({name: given[name] for name in (*OF_A_MODEL, "base_model") if name in given}))
    return {
        "checkpointing": case.checkpoints,
        **keys,
        "base_model": case.base_model or _random_model(case, folder / "model"),
        "more": read_settings(given.get("set", [])),
        "ours": read_settings(given.get("set_ours", [])),
    }


def _random_model(case: Case, folder: Path) -> str:
    """A folder with the case's model and a tokenizer with a chat template."""
    from benchmarks.speed.models import draw, random_config
    from tests.tiny import make_tokenizer

    tokenizer = make_tokenizer(["a b c"])
    ids = {f"{name}_token_id": tokenizer.convert_tokens_to_ids(token) for name, token in TOKENS.items()}
    draw(random_config(case, **ids)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


TOKENS = {"pad": "<pad>", "bos": "<s>", "eos": "</s>"}


def table(found: dict[str, list[Result]]) -> str:
    """Means over the repeats, and as shares of the first contender's; the range of what was repeated."""
    means = {contender: _mean(runs) for contender, runs in found.items()}
    first = next(iter(means.values()))
    return markdown(HEADER, [_row(name, means[name], found[name], first) for name in found])


def _mean(runs: list[Result]) -> Result:
    done = [run for run in runs if "failed" not in run]
    return {key: statistics.mean(run[key] for run in done) for key in MEASURED} if done else {}


def _row(name: str, mean: Result, runs: list[Result], first: Result) -> list[str]:
    if not mean:
        return [name, runs[0]["failed"], *[""] * (len(HEADER) - 2)]
    times = sorted(run["train_runtime"] for run in runs if "failed" not in run)
    spread = f" ({times[0]:.1f} to {times[-1]:.1f})" if len(times) > 1 else ""
    return [
        name,
        number(mean, "train_runtime", ".1f") + spread,
        number(mean, "seconds"),
        number(mean, "command_seconds", ".0f"),
        megabytes(mean, "bytes"),
        megabytes(mean, "peak_bytes"),
        *(ratio(mean, first, key) for key in ("train_runtime", "seconds", "bytes")),
    ]
