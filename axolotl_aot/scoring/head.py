"""Log-probabilities of tokens from the hidden states before a model's head, a chunk of logits at a time.

The logits of a large vocabulary are the largest tensor of preference training by far, and nobody needs
them all at once. What is needed of a token is one number and, in training, that number's derivative by
the token's hidden state. Where the head is frozen, as under LoRA, the derivative does not depend on the
loss, so it is found while the logits are at hand, and they are computed once. Where the head is trained,
they are computed again in the backward pass.

Imports torch only.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# Of a chunk's logits in float32. On a CPU more is no faster, and less is slower and takes more memory: below
# 32 MiB glibc no longer gives it back at once. A GPU needs some hundred tokens at a time to be busy.
LOGITS_BYTES = {"cpu": 40 * 2**20, "cuda": 256 * 2**20}

Head = Callable[[Tensor], Tensor]  # hidden states (tokens, hidden size) to logits (tokens, vocabulary)


class TokenScores(NamedTuple):
    """Of each token: its log-probability in nats, shape (tokens,), and the derivative of that by the
    hidden state before the head, shape (tokens, hidden size); None where it was not found.
    """

    logprobs: Tensor
    gradient: Tensor | None

    def of(self, lengths: list[int], sequences: list[int]) -> "TokenScores":
        """The scores of some sequences' tokens; lengths: how many tokens each of all sequences has."""

        def some(values: Tensor) -> Tensor:
            parts = values.split(lengths)
            return torch.cat([parts[i] for i in sequences])

        gradient = None if self.gradient is None else some(self.gradient)
        return TokenScores(some(self.logprobs), gradient)


def token_scores(
    hidden: Tensor,
    targets: Tensor,
    head: Head,
    *,
    vocabulary: int,
    head_requires_grad: bool,
    save_grad: bool = False,
) -> TokenScores:
    """Log-probabilities of tokens, differentiable in what the hidden states and the head come from.

    In float32 (float64 for float64 logits) whatever the logits' dtype. No more than a chunk of logits is
    held at a time, forwards or backwards.

    Args:
        hidden: shape (tokens, hidden size).
        targets: the token that follows each of them, shape (tokens,).
        head: gives the logits; a token's must depend on its own hidden state alone.
        vocabulary: number of logits of a token, which decides how many tokens make a chunk.
        head_requires_grad: whether the head itself is trained.
        save_grad: under `no_grad`, find the derivative nevertheless, for `cached_token_scores` later. A
            head that requires gradients has none to save.
    """
    limit = LOGITS_BYTES.get(hidden.device.type, LOGITS_BYTES["cuda"])
    size = max(1, limit // (4 * vocabulary))
    chunks = list(zip(hidden.split(size), targets.split(size), strict=True))
    differentiable = torch.is_grad_enabled()
    if not head_requires_grad and (save_grad or differentiable):
        logprobs, gradients = zip(*(_with_gradient(h.detach(), t, head) for h, t in chunks), strict=True)
        scores = TokenScores(torch.cat(logprobs), torch.cat(gradients))
        return cached_token_scores(hidden, scores) if differentiable else scores
    each = _recomputed if differentiable else _logprobs
    return TokenScores(torch.cat([each(h, t, head) for h, t in chunks]), None)


def cached_token_scores(hidden: Tensor, cached: TokenScores) -> TokenScores:
    """Scores whose derivative is known, differentiable in what the hidden states come from."""
    return cached._replace(logprobs=_SavedGrad.apply(hidden, *cached))


class _SavedGrad(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, logprobs: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        ctx.dtype = hidden.dtype
        return logprobs.clone()

    @staticmethod
    def backward(ctx: Any, by_logprobs: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return (by_logprobs[:, None] * gradient).to(ctx.dtype), None, None


def _logprobs(hidden: Tensor, targets: Tensor, head: Head) -> Tensor:
    return _log_softmax(head(hidden)).gather(1, targets[:, None])[:, 0]


def _recomputed(hidden: Tensor, targets: Tensor, head: Head) -> Tensor:
    # an engine may show a sharded weight with another shape between forward and backward pass
    return checkpoint(
        _logprobs,
        hidden,
        targets,
        head,
        use_reentrant=False,
        preserve_rng_state=False,
        determinism_check="none",
    )


def _with_gradient(hidden: Tensor, targets: Tensor, head: Head) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        logits = head(hidden.requires_grad_())
    table = _log_softmax(logits.detach())
    logprobs = table.gather(1, targets[:, None])[:, 0]
    # d log p(target) / d logits is onehot(target) - p; here the negative, in the table's own memory
    by_logits = table.exp_().scatter_add_(1, targets[:, None], -torch.ones_like(table[:, :1]))
    (gradient,) = torch.autograd.grad(logits, hidden, by_logits.to(logits.dtype))
    return logprobs, gradient.neg_()


def _log_softmax(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits, dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))
