"""Log-probabilities of a data set under a loaded model, without a trainer."""

from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from peft import PeftModel
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from axolotl_aot.scoring.batches import SEQUENCES, Batch, Collator, cut
from axolotl_aot.scoring.forward import CompletionScores, attach, completion_logprobs
from axolotl_aot.scoring.layout_check import Way, find_way, make_probe
from axolotl_aot.scoring.reference_cache import Sequence


class Precision(NamedTuple):
    """autocast: the type that matrices are multiplied in; None for that of the weights."""

    autocast: torch.dtype | None = None

    def context(self, device: torch.device) -> AbstractContextManager:
        return torch.autocast(device.type, dtype=self.autocast, enabled=self.autocast is not None)

    def epsilon(self, weights: torch.dtype) -> float:
        return max(torch.finfo(dtype).eps for dtype in (self.autocast or weights, weights))


@torch.no_grad()
def score(
    model: PreTrainedModel | PeftModel,
    sequences: dict[bytes, Sequence],
    *,
    batch_size: int,
    precision: Precision,
    padding_free: bool | None = None,
    description: str = "Scoring",
) -> dict[bytes, float]:
    """Log-probability of each completion given its prompt, in nats, by the sequences' keys.

    One pass over the sequences, longest first, with a progress bar.

    Args:
        batch_size: how many of the longest sequences fit into memory at once.
        padding_free: `aot_padding_free`.
        description: for the progress bar.
    """
    model.eval()
    bare = model.get_base_model() if isinstance(model, PeftModel) else model
    attach(bare)

    def scored(batch: Batch, way: Way) -> CompletionScores:
        with precision.context(model.device):
            rows = {name: batch[name] for name in SEQUENCES}
            return completion_logprobs(model, **rows, layout=way.layout, plain=way.plain)

    keys, todo = list(sequences), list(sequences.values())
    way = find_way(
        scored,
        make_probe(_batch(todo[:1], model.device)),
        attention=bare.config._attn_implementation,  # transformers has no other place
        padding_free=padding_free,
        needs_one_row=False,
        epsilon=precision.epsilon(bare.dtype),
        model=type(bare).__name__,
    )
    lengths = [len(s.prompt) + len(s.completion) for s in todo]
    found: dict[bytes, float] = {}
    with tqdm(total=len(keys), desc=description, unit="answers") as bar:
        for group in cut([[length] for length in lengths], way.tokens, batch_size * max(lengths)):
            logprobs: Tensor = scored(_batch([todo[i] for i in group], model.device), way).logprobs
            found.update(zip([keys[i] for i in group], logprobs.tolist(), strict=True))
            bar.update(len(group))
    return found


def _batch(sequences: list[Sequence], device: torch.device) -> Batch:
    rows = [{"prompt_ids": s.prompt, "completion_ids": s.completion} for s in sequences]
    return {name: value.to(device) for name, value in Collator(["completion_ids"])(rows).items()}
