"""Rewards by a sequence-classification model of transformers, with its own tokenizer and chat template."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from axolotl_aot.data.prompts import Prompt
from axolotl_aot.errors import AOTConfigError, AOTDataError
from axolotl_aot.trained.weights import stamp


class ModelReward:
    """`--reward-model`: the one logit of a conversation, or of a text, that ends with the answer.

    A prompt that is formatted text is followed by the answer as it stands. batch_size: sequences at once.
    """

    def __init__(self, path: str, batch_size: int):
        """Load it.

        Raises:
            AOTConfigError: it is no such model, or has several labels.
        """
        self.name = f"--reward-model {path}"
        self.identity = f"{self.name} {stamp(Path(path))}"
        model, info, self._tokenizer = _loaded(path, self.name)
        if model.config.num_labels != 1:
            raise AOTConfigError(
                f"{self.name}: it has {model.config.num_labels} labels, and a reward model has one "
                "(`num_labels: 1`)"
            )
        if info["missing_keys"]:
            raise AOTConfigError(
                f"{self.name}: its weights lack {', '.join(sorted(info['missing_keys'])[:3])}: it was not "
                "saved as a sequence-classification model"
            )
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model = model.to(device).eval()
        self._tokenizer.padding_side = "right"
        # a model without a padding token cannot tell where the shorter of two sequences ends
        padded = self._tokenizer.pad_token_id is not None
        if padded:
            self._model.config.pad_token_id = self._tokenizer.pad_token_id
        self._batch_size = batch_size if padded else 1

    def __call__(self, prompt: Prompt, answers: list[str]) -> list[float]:
        ids = [self._ids(prompt, answer) for answer in answers]
        longest = self._model.config.to_dict().get("max_position_embeddings")
        for answer, each in zip(answers, ids, strict=True):
            if longest and len(each) > longest:
                raise AOTDataError(
                    f"{self.name}: prompt {prompt.row} with the answer {answer!r:.60} has {len(each)} "
                    f"tokens, and the model takes {longest}; set a smaller --max-new-tokens, or leave it out"
                )
        scores = []
        for begin in range(0, len(ids), self._batch_size):
            scores += self._logits(ids[begin : begin + self._batch_size])
        return scores

    @torch.no_grad()
    def _logits(self, ids: Sequence[list[int]]) -> list[float]:
        batch = self._tokenizer.pad({"input_ids": list(ids)}, return_tensors="pt").to(self._model.device)
        logits = self._model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        return logits[:, 0].float().tolist()

    def _ids(self, prompt: Prompt, answer: str) -> list[int]:
        if prompt.is_text:
            return self._tokenizer(prompt.text + answer)["input_ids"]
        if not self._tokenizer.chat_template:
            raise AOTDataError(
                f"{self.name}: its tokenizer has no chat template, and prompt {prompt.row} is a conversation"
            )
        messages = [*prompt.messages, {"role": "assistant", "content": answer}]
        text = self._tokenizer.apply_chat_template(messages, tools=prompt.tools, tokenize=False)
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]


def _loaded(path: str, name: str) -> tuple[Any, dict[str, Any], Any]:
    """The model, what transformers says of its weights, and the tokenizer."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        model, info = AutoModelForSequenceClassification.from_pretrained(
            path, dtype="auto", output_loading_info=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise AOTConfigError(f"{name}: cannot be loaded: {error}") from error
    return model, info, tokenizer
