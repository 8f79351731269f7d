"""Tables, and differences that answer a question, as Markdown. Imports `benchmarks.alignment.estimates`."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from benchmarks.alignment.estimates import Estimate, estimate


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def percent(found: Estimate, signed: bool = False) -> str:
    """A share, or a difference of shares, in percent, with its interval."""
    form = "{:+.1f}" if signed else "{:.1f}"
    mean, low, high = (form.format(100 * value) for value in found[:3])
    return f"{mean} [{low}, {high}]"


def in_points(found: Estimate) -> str:
    return percent(found, signed=True)


def in_nats(found: Estimate) -> str:
    return f"{found.mean:+.2f} [{found.low:+.2f}, {found.high:+.2f}]"


class Claim(NamedTuple):
    """A difference that is above 0 if the words are true here. of_paper: whether the paper says so."""

    words: str
    difference: np.ndarray
    of_paper: bool = True


OUTCOMES = {
    (1, True): "**repeated**",
    (0, True): "not clear either way",
    (-1, True): "**the opposite**",
    (1, False): "yes",
    (0, False): "not clear either way",
    (-1, False): "no: below",
}


def findings(
    claims: list[Claim],
    unit: str = "reward, points",
    shown: Callable[[Estimate], str] = in_points,
) -> str:
    rows = []
    for claim in claims:
        found = estimate(claim.difference)
        above = f"{found.above} of {found.count}"
        rows.append([claim.words, shown(found), above, OUTCOMES[found.sign, claim.of_paper]])
    return table(["is it so?", f"difference in {unit}", "seeds above 0", "here"], rows)


class Section(NamedTuple):
    """Markdown, each ending with a newline. findings: what there is to say of the table."""

    table: str
    findings: str
