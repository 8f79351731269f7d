"""Who computes a token's log-probability from its hidden state: ours, other kernels, and the bare product.

A contender takes hidden states (tokens, hidden size), the head's weight (vocabulary, hidden size) and targets
(tokens,). One that is not installed raises ImportError when it is made.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from axolotl_aot.scoring import head as our_head

Function = Callable[[Tensor, Tensor, Tensor], Tensor]


class Contender(NamedTuple):
    """forward: log-probabilities in nats, or None where it gives them with the gradient only; with_gradient:
    the gradient of their sum by the hidden states. chunked: whether it cuts the tokens itself.
    """

    forward: Function | None
    with_gradient: Function
    chunked: bool = False


def bare() -> Contender:
    """The matrix products alone, of all logits at once: one forwards, two with the gradient."""

    def forward(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        return hidden @ weight.T

    def both(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        return (hidden @ weight.T) @ weight

    return Contender(forward, both)


def ours() -> Contender:
    """`scoring/head.py`, with a frozen head, as under LoRA."""

    def scores(hidden: Tensor, weight: Tensor, targets: Tensor, save_grad: bool) -> our_head.TokenScores:
        head = torch.nn.functional.linear
        with torch.no_grad():
            return our_head.token_scores(
                hidden,
                targets,
                lambda states: head(states, weight),
                vocabulary=len(weight),
                head_requires_grad=False,
                save_grad=save_grad,
            )

    def forward(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        return scores(hidden, weight, targets, save_grad=False).logprobs

    def both(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        return scores(hidden, weight, targets, save_grad=True).gradient

    return Contender(forward, both, chunked=True)


def all_logits() -> Contender:
    """PyTorch's own, of all logits at once, by autograd."""

    def forward(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        return -torch.nn.functional.cross_entropy((hidden @ weight.T).float(), targets, reduction="none")

    return Contender(_without_graph(forward), _by_autograd(forward))


def cut_cross_entropy() -> Contender:
    """Apple's kernel, which never writes logits to memory."""
    from cut_cross_entropy import linear_cross_entropy

    def forward(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        return -linear_cross_entropy(hidden, weight, targets, reduction="none")

    return Contender(_without_graph(forward), _by_autograd(forward))


def liger() -> Contender:
    """Liger's fused linear cross-entropy. It finds gradients in the forward pass, of the sum only."""
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    loss = LigerFusedLinearCrossEntropyLoss(reduction="sum")

    def total(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        return -loss(weight, hidden, targets)

    return Contender(None, _by_autograd(total))


CONTENDERS: dict[str, Callable[[], Contender]] = {
    "bare product": bare,
    "ours": ours,
    "all logits": all_logits,
    "cut_cross_entropy": cut_cross_entropy,
    "Liger": liger,
}


def _without_graph(function: Function) -> Function:
    return torch.no_grad()(function)


def _by_autograd(function: Function) -> Function:
    def gradient(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        leaf = hidden.detach().requires_grad_()
        return torch.autograd.grad(function(leaf, weight, targets).sum(), leaf)[0]

    return gradient


@contextmanager
def chunks_of(tokens: int | None, device: str, vocabulary: int) -> Iterator[int]:
    """Let our head cut so many tokens at a time (None: as it would); yields how many."""
    table = our_head.LOGITS_BYTES
    before = table[device]
    if tokens is not None:
        table[device] = 4 * vocabulary * tokens
    try:
        yield table[device] // (4 * vocabulary)
    finally:
        table[device] = before
