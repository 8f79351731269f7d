"""Log-probabilities of completions under a causal language model.

Imports torch only; knows neither axolotl nor AOT.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def completion_logprobs(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor,
    completion_mask: Tensor,
    **model_kwargs: Any,
) -> tuple[Tensor, Any]:
    """Summed log-probability of each sequence's completion tokens, given what precedes them.

    Equals `log_softmax(logits)` gathered at the next token and summed over the completion, in float32
    (float64 for a float64 model) whatever the logits' dtype; only completion tokens are looked at.

    Args:
        model: a causal language model, wrapped or not.
        input_ids: shape (batch, length).
        attention_mask: shape (batch, length), 1 on tokens and 0 on padding.
        completion_mask: shape (batch, length), 1 on the completion's tokens. A first token has nothing
            before it and is not counted.
        model_kwargs: handed to the model as they are.

    Returns:
        The log-probabilities, shape (batch,), in nats; and the model's output.
    """
    outputs = model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **model_kwargs)
    row, position = completion_mask[:, 1:].nonzero(as_tuple=True)
    logits = outputs.logits[row, position]  # the logits at a position predict the next token
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    token_logprobs = -F.cross_entropy(logits, input_ids[row, position + 1], reduction="none")
    # one row after the other: index_add would add in no fixed order on a GPU
    sums = token_logprobs.new_zeros(completion_mask.shape[0], completion_mask.shape[1] - 1)
    sums = sums.index_put((row, position), token_logprobs)
    return sums.sum(dim=1), outputs
