"""What each of several models says to the same few evaluation prompts, for `axolotl aot-report`."""

from collections.abc import Sequence
from typing import Any

import torch
from axolotl.utils.logging import get_logger
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from axolotl_aot.generation.evaluation_prompts import EvaluationPrompts, evaluation_prompts, greedy_answers
from axolotl_aot.report.answers import answers_shown, no_answers
from axolotl_aot.scoring.scorer import matmul_precision

LOG = get_logger(__name__)


class ComparedAnswers:
    """Collects the answers of models while each is loaded. A model that cannot answer is told, and no more.

    Args:
        dataset, columns: the evaluation set, tokenized, and its columns that hold completions.
        count: how many prompts; 0 for no answers.
        matmul_dtype: the type that matrices are multiplied in; None for that of the weights.
    """

    def __init__(
        self,
        dataset: Dataset,
        columns: Sequence[str],
        count: int,
        tokenizer: PreTrainedTokenizerBase,
        matmul_dtype: torch.dtype | None,
    ):
        self._data = dataset, columns, count
        self._tokenizer = tokenizer
        self._matmul_dtype = matmul_dtype
        self._asked: EvaluationPrompts | None = None
        self._said: dict[str, list[list[int]]] = {}
        self._why_not: dict[str, str] = {}

    def ask(self, name: str, model: PreTrainedModel | PeftModel) -> None:
        """Have a model answer; the first one is the base model, by whose end tokens all answers end."""
        if not self._data[-1]:
            return
        try:
            if self._asked is None:
                self._asked = evaluation_prompts(*self._data, model, self._tokenizer)
            with matmul_precision(self._matmul_dtype, model.device):
                self._said[name] = greedy_answers(model, self._asked)
        except Exception as error:  # the scores are worth a report without answers
            self._why_not[name] = f"{name}: {type(error).__name__}: {error}"
            LOG.warning(f"no answers in the report of {self._why_not[name]}")

    def shown(self, names: Sequence[str], base: str) -> dict[str, Any]:
        """Of the trained models, for `report.json`; base: the name under which the base model was asked."""
        if not self._data[-1]:
            return {}
        return {name: self._shown(name, base) for name in names}

    def _shown(self, name: str, base: str) -> dict[str, Any]:
        why = next((self._why_not[n] for n in (base, name) if n in self._why_not), None)
        if why is not None:
            return no_answers(why)
        return answers_shown(self._asked, self._said[base], self._said[name], self._tokenizer)
