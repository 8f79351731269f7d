"""One contender in a process of its own; any interpreter that has what the contender needs.

    python -m benchmarks.speed.job JOB.json

The file holds the contender, the case, and where its tokens are. The result is the last line that is printed.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.speed.cases import Case


class Job(NamedTuple):
    """What a process is told. tokens: a JSON file of columns. memory_limit: of the GPU, in GiB."""

    contender: str
    case: Case
    tokens: Path
    memory_limit: float | None = None

    def write(self, path: Path) -> Path:
        job = {**self._asdict(), "case": asdict(self.case), "tokens": str(self.tokens)}
        path.write_text(json.dumps(job))
        return path

    @classmethod
    def read(cls, path: Path) -> "Job":
        job = json.loads(path.read_text())
        contenders = tuple(job["case"]["contenders"])
        case = Case(**{**job["case"], "contenders": contenders})
        return cls(**{**job, "case": case, "tokens": Path(job["tokens"])})

    def run(self) -> dict[str, Any]:
        """What `measure` returns, in this process."""
        from benchmarks.speed.memory import limit
        from benchmarks.speed.steps import measure

        if self.memory_limit is not None:
            limit(self.memory_limit)
        return measure(self.contender, self.case, json.loads(self.tokens.read_text()))


if __name__ == "__main__":
    print(json.dumps(Job.read(Path(sys.argv[1])).run()))
