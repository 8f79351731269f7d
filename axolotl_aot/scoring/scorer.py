"""The scorer: log-probabilities of completions, in training, in evaluation and for a report.

It knows how a model is to be scored (`layout_check`), and looks that up once, at the first batch.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedModel

from axolotl_aot.scoring.batches import SEQUENCES, Batch, Collator, cut
from axolotl_aot.scoring.forward import CompletionScores, attach, completion_logprobs
from axolotl_aot.scoring.layout_check import ScoringStrategy, make_probe, select_strategy
from axolotl_aot.scoring.models import without_adapter
from axolotl_aot.scoring.reference_cache import TokenizedAnswer, digest
from axolotl_aot.scoring.shared_prompts import sharing_under
from axolotl_aot.scoring.sizes import SequenceSize, Sizes, numbered

MIXED_PRECISION = {"bf16": torch.bfloat16, "fp16": torch.float16}  # accelerate's names


class Scorer:
    """Scores batches under models of one architecture, as policy and reference are.

    Args:
        policy: gives the model that is scored, or trained, for which the strategy is found. It is asked
            when that is due, since an engine may wrap the model meanwhile.
        device: where the models are.
        matmul_dtype: the type that matrices are multiplied in; None for that of the weights.
        autocast: makes the context of a forward pass without gradients; torch's autocast to `matmul_dtype`
            where None. With gradients the caller sets the context, as Trainer does.
        padding_free: `aot_padding_free`.
        needs_one_row: see `select_strategy`.
        trains: whether the policy is being trained.
        same_everywhere: gives a tensor of the main process to all processes, so that they all come to the
            same strategy.
    """

    def __init__(
        self,
        policy: Callable[[], nn.Module],
        device: torch.device,
        matmul_dtype: torch.dtype | None = None,
        *,
        autocast: Callable[[], AbstractContextManager] | None = None,
        padding_free: bool | None = None,
        needs_one_row: bool = False,
        trains: bool = False,
        same_everywhere: Callable[[Tensor], Tensor] = lambda tensor: tensor,
    ):
        self._policy = policy
        self.device = device
        self._matmul_dtype = matmul_dtype
        self._autocast = autocast or self._torch_autocast
        self._padding_free = padding_free
        self._needs_one_row = needs_one_row
        self._trains = trains
        self._same_everywhere = same_everywhere
        self._strategy: ScoringStrategy | None = None

    def scores(self, model: nn.Module, batch: Batch, **kwargs: Any) -> CompletionScores:
        """Of the batch's completions under a model, wrapped or not; arguments as `completion_logprobs`."""
        return _scores(self.strategy(batch), model, batch, **kwargs)

    def scores_without_gradients(self, model: nn.Module, batch: Batch, **kwargs: Any) -> CompletionScores:
        """The same in evaluation mode and without a graph."""
        with self._inference(model):
            return self.scores(model, batch, **kwargs)

    def strategy(self, batch: Batch) -> ScoringStrategy:
        """How the batches of this run are scored; found at the first one, on a few of its tokens."""
        if self._strategy is None:
            policy = self._policy()
            probe = make_probe(batch)
            probe["input_ids"] = self._same_everywhere(probe["input_ids"])
            with self._inference(policy):
                self._strategy = select_strategy(
                    lambda some, strategy: _scores(strategy, policy, some),
                    probe,
                    attention=policy.config._attn_implementation,  # transformers has no public place for it
                    padding_free=self._padding_free,
                    needs_one_row=self._needs_one_row,
                    sharing=sharing_under(policy.config),
                    epsilon=self.epsilon,
                    model=type(without_adapter(policy)).__name__,
                )
        return self._strategy

    @property
    def epsilon(self) -> float:
        """Of the coarser of the types that the policy's weights are held in and multiplied in."""
        weights = self._policy().dtype
        return max(torch.finfo(dtype).eps for dtype in (self._matmul_dtype or weights, weights))

    @contextmanager
    def _inference(self, model: nn.Module) -> Iterator[None]:
        """No gradients, no dropout, no noise, no gradient checkpointing; the mode before is restored."""
        training = model.training
        model.train(self._must_stay_in_training_mode(model))
        try:
            with torch.no_grad(), self._autocast():
                yield
        finally:
            model.train(training)

    def _must_stay_in_training_mode(self, model: nn.Module) -> bool:
        """bitsandbytes repacks 4-bit weights at their first forward pass in evaluation mode on a CPU with
        AVX-512 BF16, and from then on lets no gradient through them. TRL switches dropout off anyway.
        """
        # transformers sets the attribute on 4-bit models only
        return self._trains and self.device.type == "cpu" and getattr(model, "is_loaded_in_4bit", False)

    def _torch_autocast(self) -> AbstractContextManager:
        return matmul_precision(self._matmul_dtype, self.device)


def matmul_precision(dtype: torch.dtype | None, device: torch.device) -> AbstractContextManager:
    """A context in which matrices are multiplied in a type; None for that of the weights."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


def _scores(strategy: ScoringStrategy, model: nn.Module, batch: Batch, **kwargs: Any) -> CompletionScores:
    sequences = {name: batch[name] for name in SEQUENCES}
    return completion_logprobs(
        model, **sequences, layout=strategy.layout, full_logits=strategy.full_logits, **kwargs
    )


# --- Whole data sets --------------------------------------------------------------------------


def collate(sequences: list[TokenizedAnswer], device: torch.device) -> Batch:
    """A batch of single completions, each with its prompt."""
    rows = [{"prompt_ids": s.prompt, "completion_ids": s.completion} for s in sequences]
    return {name: value.to(device) for name, value in Collator(["completion_ids"])(rows).items()}


def score_each(
    score: Callable[[Batch], Tensor],
    sequences: dict[bytes, TokenizedAnswer],
    *,
    tokens: Callable[[Sizes], int],
    sequences_at_once: int,
    device: torch.device,
    description: str,
    process: int = 0,
    processes: int = 1,
) -> Iterator[list[tuple[bytes, float]]]:
    """Log-probabilities of sequences by their keys, in nats; a batch at a time, the longest first.

    Every process is given as many batches as the others: where they do not divide, the last one is scored
    by several.

    Args:
        score: gives a batch's log-probabilities, shape (sequences,).
        tokens: how many tokens samples take in the layout that is scored in.
        sequences_at_once: how many of the longest sequences fit into memory.
        process, processes: this process's rank, and their number.
    """
    keys, todo = list(sequences), list(sequences.values())
    prompts = numbered(digest(s.prompt, []) for s in todo)
    sizes = [
        SequenceSize(len(s.prompt), len(s.completion), number)
        for s, number in zip(todo, prompts, strict=True)
    ]
    longest = max(size.total for size in sizes)
    batches = cut([[size] for size in sizes], tokens, sequences_at_once * longest)
    with tqdm(total=len(keys), desc=description, unit="answers", disable=process != 0) as bar:
        for start in range(0, len(batches), processes):
            turn = batches[start : start + processes]
            mine = turn[min(process, len(turn) - 1)]
            logprobs = score(collate([todo[i] for i in mine], device)).tolist()
            yield list(zip([keys[i] for i in mine], logprobs, strict=True))
            bar.update(sum(map(len, turn)))


def score_sequences(
    model: PreTrainedModel | PeftModel,
    sequences: dict[bytes, TokenizedAnswer],
    *,
    matmul_dtype: torch.dtype | None = None,
    sequences_at_once: int,
    padding_free: bool | None = None,
    description: str = "Scoring",
) -> dict[bytes, float]:
    """Log-probability of each completion given its prompt, in nats, under a loaded model; by key.

    Arguments as `score_each`.
    """
    attach(without_adapter(model))
    scorer = Scorer(lambda: model, model.device, matmul_dtype, padding_free=padding_free)
    probe = collate([next(iter(sequences.values()))], scorer.device)
    batches = score_each(
        lambda batch: scorer.scores_without_gradients(model, batch).logprobs,
        sequences,
        tokens=scorer.strategy(probe).tokens,
        sequences_at_once=sequences_at_once,
        device=scorer.device,
        description=description,
    )
    return dict(scored for batch in batches for scored in batch)
