"""What is known of courses, as JSON Lines. Imports `course` beside it."""

import json
from dataclasses import asdict
from pathlib import Path

from benchmarks.alignment.rounds.course import Course

PATH = Path(__file__).parents[1] / "rounds.jsonl"
DIGITS = 5


def read(path: Path = PATH) -> dict[Course, list[dict]]:
    """Nothing where there is no file."""
    if not path.is_file():
        return {}
    lines = map(json.loads, path.read_text("utf-8").splitlines())
    return {Course(**line["course"]): line["rounds"] for line in lines}


def append(path: Path, course: Course, rounds: list[dict]) -> None:
    """rounds: of each, `pairs`, `malformed`, and scores by the part of the problems."""
    rounded = json.loads(json.dumps(rounds), parse_float=lambda text: round(float(text), DIGITS))
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"course": asdict(course), "rounds": rounded}) + "\n")
