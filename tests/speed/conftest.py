"""A contender on a tiny case."""

import json

import pytest

from benchmarks.speed import cases, tokens
from benchmarks.speed.job import Job

TINY = cases.Case(vocabulary=1_000, lengths="32", micro_batch=2, steps=1)


@pytest.fixture
def job(tmp_path):
    """A contender on a tiny case, ready to run."""

    def job(contender: str, case: cases.Case = TINY) -> Job:
        path = tmp_path / "tokens.json"
        path.write_text(json.dumps(tokens.rows(case, None, case.pairs)))
        return Job(contender, case, path)

    return job
