"""The trainers alone, on the same tokens: which cases, where each is measured, and the table."""

import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.speed.cases import ALL_CASES, ALL_CONTENDERS, CASES, PEER, Case
from benchmarks.speed.errors import UsageError
from benchmarks.speed.job import Job
from benchmarks.speed.options import of_a_case, require_known
from benchmarks.speed.processes import in_its_own_process, in_this_process
from benchmarks.speed.tables import Result, Results, markdown, megabytes, number, ratio
from benchmarks.speed.tokens import rows

HEADER = ("case", "trainer", "s / step", "tokens / s", "MB above the model", "MB in all", "time", "memory")


def chosen_cases(given: dict[str, Any]) -> dict[str, Case]:
    """The named cases, changed by what the command line says."""
    cases = {name: replace(ALL_CASES[name], **of_a_case(given)) for name in given.get("cases", CASES)}
    if "peer_python" in given and "contenders" not in given:
        cases = {name: replace(case, contenders=(*case.contenders, PEER)) for name, case in cases.items()}
    for case in cases.values():
        require_known(case.contenders, ALL_CONTENDERS)
        if (PEER in case.contenders) != ("peer_python" in given):
            raise UsageError(f"--contenders {PEER!r} and --peer-python PATH need each other")
    _require_readers(given, {case.lengths == "real" for case in cases.values()})
    if "micro_batch" not in given:
        return cases
    return {
        f"{name}, micro-batch {size}": replace(case, micro_batch=size)
        for name, case in cases.items()
        for size in given["micro_batch"]
    }


def _require_readers(given: dict[str, Any], real: set[bool]) -> None:
    for name, needs, cases in (
        ("data", True, "--lengths real"),
        ("longest", True, "--lengths real"),
        ("prompt", False, "--lengths in tokens"),
    ):
        if name in given and needs not in real:
            raise UsageError(f"--{name} is read with {cases} only, and none of these cases has that")


def main(given: dict[str, Any], results: Results) -> None:
    """Measure all cases; a table of each."""
    cases = chosen_cases(given)
    if "peer_python" in given:
        require_trl(given["peer_python"])
    here = in_this_process if "one_process" in given else in_its_own_process
    measured_by = {PEER: partial(in_its_own_process, python=given.get("peer_python", sys.executable))}
    for name, case in cases.items():
        found = []
        with tempfile.TemporaryDirectory() as folder:
            tokens = Path(folder) / "tokens.json"
            tokens.write_text(json.dumps(rows(case, given.get("data"), case.pairs)))
            for contender in case.contenders:
                job = Job(contender, case, tokens, given.get("memory_limit"))
                result = measured_by.get(contender, here)(job)
                found.append(results.add({"case": name, "trainer": contender, **result}))
        print(table(found), flush=True)


def require_trl(python: str) -> None:
    """
    Raises:
        UsageError: the interpreter has no TRL.
    """
    try:
        run = subprocess.run([python, "-c", "import trl"], capture_output=True, text=True)
    except OSError as error:
        raise UsageError(
            f"--peer-python {python}: {error.strerror}; name a python, like VENV/bin/python"
        ) from None
    if run.returncode:
        raise UsageError(f"--peer-python {python}: it cannot import trl; install trl and peft there")


def table(found: list[Result]) -> str:
    """Of one case; ratios to its first trainer."""
    return markdown(HEADER, [_row(result, found[0]) for result in found])


def _row(result: Result, first: Result) -> list[str]:
    if "failed" in result:
        return [result["case"], result["trainer"], result["failed"], *[""] * 5]
    trainer = f"{result['trainer']} ({result['trl']})" if result["trainer"] == PEER else result["trainer"]
    return [
        result["case"],
        trainer,
        number(result, "seconds"),
        number(result, "tokens_per_second", ",.0f"),
        megabytes(result, "bytes"),
        megabytes(result, "peak_bytes"),
        ratio(result, first, "seconds"),
        ratio(result, first, "bytes"),
    ]
