"""What a model says before and after training: greedy answers to a few evaluation prompts, side by side."""

import unicodedata
from typing import Any

from transformers import PreTrainedTokenizerBase

from axolotl_aot.generation.evaluation_prompts import EvaluationPrompts
from axolotl_aot.generation.measures import has_ended, measure

SHOWN_MEASURES = {
    "length": "answers/length",
    "ended": "answers/ended",
    "repetition": "answers/repetition",
    "repeating": "answers/repeating",
}


def answers_shown(
    asked: EvaluationPrompts,
    before: list[list[int]],
    after: list[list[int]],
    tokenizer: PreTrainedTokenizerBase,
) -> dict[str, Any]:
    """Of one model, for `report.json`; before, after: answers to the prompts, as token ids.

    The texts are decoded with special tokens, so that it can be seen where an answer ends. An answer's
    tokens include its end token.
    """
    samples = [
        {
            "prompt": tokenizer.decode(prompt),
            **_answer(first, "before", asked.ends, tokenizer),
            **_answer(last, "after", asked.ends, tokenizer),
        }
        for prompt, first, last in zip(asked.prompts, before, after, strict=True)
    ]
    return {
        "before": measure(before, asked.ends)._asdict(),
        "after": measure(after, asked.ends)._asdict(),
        "max_new_tokens": asked.max_new_tokens,
        "samples": samples,
        "why_not": None,
    }


def no_answers(why: str) -> dict[str, Any]:
    """The same where there are none, and why."""
    return {"before": None, "after": None, "max_new_tokens": None, "samples": [], "why_not": why}


def _answer(
    tokens: list[int], when: str, ends: list[int], tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    return {
        when: tokenizer.decode(tokens),
        f"tokens_{when}": len(tokens),
        f"ended_{when}": has_ended(tokens, ends),
    }


def answer_metrics(answers: dict[str, Any]) -> dict[str, float]:
    """The measures by the names that they are logged under; none where there are no answers."""
    if answers["why_not"] is not None:
        return {}
    metrics = {name: answers["after"][key] for key, name in SHOWN_MEASURES.items()}
    return {**metrics, **{f"{name}_before": answers["before"][key] for key, name in SHOWN_MEASURES.items()}}


# --- Text that is safe to look at ---------------------------------------------------------------

NOT_PRINTED = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}  # Unicode's categories
KEPT = "\n\t"
JOINERS = "\u200c\u200d"  # part of the writing of some scripts, and of emoji


def visible(text: str) -> str:
    """The text with characters that are not seen, or turn others around, as their code points: `[U+202E]`."""
    return "".join(c if _is_shown(text, i) else f"[U+{ord(c):04X}]" for i, c in enumerate(text))


def _is_shown(text: str, i: int) -> bool:
    c = text[i]
    if c in JOINERS:
        return 0 < i < len(text) - 1 and all(_is_joined(text[j]) for j in (i - 1, i + 1))
    return c in KEPT or unicodedata.category(c) not in NOT_PRINTED


def _is_joined(c: str) -> bool:
    return not c.isascii() and unicodedata.category(c)[0] in "LMS"
