"""A run's log: the series in it, and what became of the answers' likelihood while it trained, in words."""

import math
from typing import Any

from axolotl_aot.dominance import ANCHOR_METRICS, RANK_DISPLACEMENT
from axolotl_aot.report.runs import BASE_MODEL
from axolotl_aot.report.verdicts import WRONG_SIDE, nats_in_words, share_in_words

History = list[dict[str, float]]


def numbers_of(entry: dict[str, Any]) -> dict[str, float]:
    """Of an entry of Trainer's log, the finite numbers."""
    return {k: v for k, v in entry.items() if isinstance(v, (int, float)) and math.isfinite(v)}


def series(history: History, key: str) -> tuple[list[int], list[float]]:
    """Steps and values of what was logged under a name."""
    logged = [(entry["step"], entry[key]) for entry in history if key in entry]
    return [int(step) for step, _ in logged], [value for _, value in logged]


def course(history: History, reference: str = BASE_MODEL) -> list[str]:
    """Sentences on the course of training, from what was logged of its steps; none of what was not logged.

    reference: what it is, in words.
    """
    told = []
    for side, metric in ANCHOR_METRICS.items():
        steps, shares = series(history, metric.share)
        if steps:
            _, nats = series(history, metric.nats)
            words = [_share_and_depth(*numbers) for numbers in zip(shares, nats, strict=True)]
            line = f"{side} answers {WRONG_SIDE[side]} than under the {reference}: {_from_to(steps, words)}"
            most = max(range(len(shares)), key=shares.__getitem__)
            if most not in (0, len(shares) - 1):
                line += f"; the most, {share_in_words(shares[most])}, in step {steps[most]}"
            told.append(line)
    steps, ranks = series(history, RANK_DISPLACEMENT)
    if steps:
        ends = _from_to(steps, [f"{share_in_words(rank)} of the ranks away" for rank in ranks])
        told.append(f"answers were compared with others {ends} (0%: the sort; a third: all with all)")
    return told


def _share_and_depth(share: float, nats: float) -> str:
    """nats: in the mean over all answers."""
    depth = f" (by {nats_in_words(nats / share)} nats on average)" if share else ""
    return f"{share_in_words(share)}{depth}"


def _from_to(steps: list[int], words: list[str]) -> str:
    """The first and the last of what was logged."""
    first = f"{words[0]} in step {steps[0]}"
    return first if len(steps) == 1 else f"{first}, {words[-1]} in step {steps[-1]}"
