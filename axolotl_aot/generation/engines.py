"""What generates answers: the table of `--engine`, and the engine that works on any device."""

from pathlib import Path
from typing import Protocol

import torch
from axolotl.train import setup_model_and_tokenizer
from axolotl.utils.dict import DictDefault

from axolotl_aot.errors import AOTConfigError
from axolotl_aot.generation.answers import Sampled
from axolotl_aot.generation.decoding import end_tokens, generate
from axolotl_aot.generation.job import Batch
from axolotl_aot.generation.vllm_engine import VLLMEngine
from axolotl_aot.scoring.models import load_adapter, load_whole_model
from axolotl_aot.scoring.scorer import matmul_precision
from axolotl_aot.trained.run_config import sequences_at_once
from axolotl_aot.trained.weights import kind_of, matmul_dtype, warn_of_another_base

ON_A_GPU = 64  # sequences at once, at least: a token of 128 took an H200 0.2 s, and one of 8 half of that


class Engine(Protocol):
    """Generates answers with the model of a config."""

    def __init__(self, cfg: DictDefault, trained: Path | None):
        """Load the model. trained: what is to answer, an adapter or a whole model; None for `base_model`."""

    @staticmethod
    def sequences_at_once(cfg: DictDefault) -> int:
        """How many sequences a batch has where the user has not said it."""

    @staticmethod
    def require() -> None:
        """Raises AOTConfigError where it is not installed."""

    def answers(self, batch: Batch) -> list[Sampled]:
        """One answer a sequence; the same each time for the same batch."""


class TransformersEngine:
    """The model as axolotl loads it, and transformers' `generate`."""

    def __init__(self, cfg: DictDefault, trained: Path | None):
        model, self._tokenizer, *_ = setup_model_and_tokenizer(cfg)
        if trained is not None and kind_of(trained) == "model":
            model = load_whole_model(model, str(trained)).to(model.device)
        elif trained is not None:
            warn_of_another_base("the adapter", trained, cfg.base_model, "used")
            model = load_adapter(model, str(trained))
        self._model = model
        self._matmul_dtype = matmul_dtype(cfg)
        self._ends = set(end_tokens(model, self._tokenizer))

    @staticmethod
    def sequences_at_once(cfg: DictDefault) -> int:
        in_yaml = sequences_at_once(cfg)
        return max(in_yaml, ON_A_GPU) if torch.cuda.is_available() else in_yaml

    @staticmethod
    def require() -> None:
        """It comes with axolotl."""

    def answers(self, batch: Batch) -> list[Sampled]:
        ends = self._ends | batch.ends
        try:
            with matmul_precision(self._matmul_dtype, self._model.device):
                found = generate(
                    self._model,
                    batch.prompts,
                    batch.decoding,
                    ends=ends,
                    pad=self._tokenizer.pad_token_id or 0,  # it is masked
                    seed=batch.seed,
                )
        except torch.OutOfMemoryError as error:
            raise AOTConfigError(_too_many(len(batch.prompts), error)) from error
        return [Sampled(ids, ids[-1] in ends) for ids in found]


def _too_many(sequences: int, error: torch.OutOfMemoryError) -> str:
    why = str(error).split(". ")[0]
    if sequences == 1:
        return f"not even one sequence fits into memory ({why}): set a smaller --max-new-tokens"
    return (
        f"{sequences} sequences at once do not fit into memory ({why}): set --batch-size {sequences // 2} or "
        "less, or a smaller --max-new-tokens"
    )


ENGINES: dict[str, type[Engine]] = {"transformers": TransformersEngine, "vllm": VLLMEngine}
