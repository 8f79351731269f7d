"""The `rl_beta` and the learning rate of each setting, as choices.json beside it holds them.

They were chosen on the validation problems, with seeds that nothing else is measured with. May import
`benchmarks.alignment.results`.
"""

import functools
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.alignment.results import NotMeasured

PATH = Path(__file__).with_name("choices.json")


@dataclass(frozen=True)
class Place:
    """What a choice is made for.

    task: its name. flipped: the share of the pairs that are turned round. positives: their share, of answers
    with a label; None for pairs, and their answers. setting: its name.
    """

    task: str
    setting: str
    flipped: float = 0.0
    epochs: int = 1
    positives: float | None = None


@dataclass(frozen=True)
class Best:
    """A point of a search, found by the mean reward on the validation problems."""

    beta: float
    learning_rate: float


Choices = dict[Place, Best]


@functools.cache
def read_choices(path: Path = PATH) -> Choices:
    """Raises:
    ValueError: a place is there twice.
    """
    found: Choices = {}
    for line in json.loads(path.read_text("utf-8")):
        best = Best(line.pop("beta"), line.pop("learning_rate"))
        place = Place(**line)
        if place in found:
            raise ValueError(f"{path}: {place} is there twice; each place has one choice")
        found[place] = best
    return found


def write_choices(choices: Choices, path: Path = PATH) -> None:
    """As `read_choices` reads them, one a line."""
    lines = [json.dumps({**asdict(place), **asdict(best)}) for place, best in choices.items()]
    path.write_text("[\n" + ",\n".join(lines) + "\n]\n", "utf-8")


def chosen(place: Place, path: Path = PATH) -> Best:
    """Raises:
    NotMeasured: there is none for the place.
    """
    choices = read_choices(path)
    if place not in choices:
        raise NotMeasured(f"no choice in {path.name} for {place}: the search has to be run for it first")
    return choices[place]
