"""What can be told of answers without reading them: how long they are, whether they end, whether they repeat
themselves.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

NGRAM = 4
REPEATING = 0.5  # of an answer's n-grams: with more repeated ones it repeats itself


class Measures(NamedTuple):
    """Of a set of answers.

    length: tokens of an answer, its end token included; the mean. ended: the share that comes to an end
    token. repetition: the mean of `repetition`. repeating: the share in which it is above `REPEATING`.
    """

    length: float
    ended: float
    repetition: float
    repeating: float


def repetition(tokens: Sequence[int]) -> float:
    """The share of an answer's n-grams that repeat an earlier one, in [0, 1); 0 where it has fewer than two.

    It is seq-rep-4 of Welleck et al., "Neural Text Generation with Unlikelihood Training" (arXiv 1908.04319,
    section 6.1): one less the share of different n-grams.
    """
    grams = [tuple(tokens[i : i + NGRAM]) for i in range(len(tokens) - NGRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def has_ended(answer: Sequence[int], ends: Collection[int]) -> bool:
    """Whether an answer's last token is an end token."""
    return bool(answer) and answer[-1] in ends


def measure(answers: Sequence[Sequence[int]], ends: Collection[int]) -> Measures:
    """Of at least one answer, as token ids; ends: the ids that end one."""
    count = len(answers)
    repeated = [repetition(answer) for answer in answers]
    return Measures(
        length=sum(map(len, answers)) / count,
        ended=sum(has_ended(answer, ends) for answer in answers) / count,
        repetition=sum(repeated) / count,
        repeating=sum(share > REPEATING for share in repeated) / count,
    )
