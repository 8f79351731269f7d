"""Log-probabilities of completions under a causal language model, without its logits.

`attach` teaches a model of transformers to answer, in its own forward pass, with the log-probabilities of
chosen tokens in place of the logits of all. Because that happens inside the model, whatever is wrapped
around it (PEFT, DDP, FSDP2, DeepSpeed, autocast) sees an ordinary forward pass: parameters are gathered
and gradients reduced as always.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from axolotl_aot.scoring.head import TokenScores, known_scores, token_scores
from axolotl_aot.scoring.layouts import Layout, padded


class Exact:
    """Scores without a graph, in a box: accelerate and FSDP2 cast a model's output, but not this."""

    def __init__(self, scores: TokenScores):
        self.scores = scores._replace(logprobs=scores.logprobs.detach())

    def differentiable_by(self, cast: Tensor) -> TokenScores:
        """The scores, with the graph of what an engine has made of the log-probabilities."""
        exact = self.scores.logprobs
        if cast.dtype != exact.dtype:
            cast = cast.to(exact.dtype)
            cast = cast + (exact - cast.detach())
        return self.scores._replace(logprobs=cast)


@dataclass
class ScoredOutput(ModelOutput):
    """What a model with `attach` answers: log-probabilities, the same and their derivatives in a box, and the
    router's loss of a mixture of experts.
    """

    logprobs: Tensor | None = None
    exact: Exact | None = None
    aux_loss: Tensor | None = None


class CompletionScores(NamedTuple):
    """Log-probabilities in nats of a batch's completions, shape (sequences,); those of their tokens, one
    sequence after the other; how many tokens each has; and the router's loss, where there is one.
    """

    logprobs: Tensor
    tokens: TokenScores
    lengths: list[int]
    aux_loss: Tensor | None


def completion_logprobs(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor,
    completion_mask: Tensor,
    *,
    layout: Callable[[Tensor, Tensor, Tensor], Layout] = padded,
    known: TokenScores | None = None,
    keep: bool = False,
    plain: bool = False,
    **model_kwargs: Any,
) -> CompletionScores:
    """Summed log-probability of each sequence's completion tokens, given what precedes them.

    Equals `log_softmax(logits)` gathered at the next token and summed over the completion, in float32
    (float64 for a float64 model) whatever the logits' dtype.

    Args:
        model: a causal language model with `attach`, wrapped or not.
        input_ids: shape (sequences, length), padded on the right.
        attention_mask: shape (sequences, length), 1 on tokens and 0 on padding.
        completion_mask: shape (sequences, length), 1 on the completion's tokens. A first token has nothing
            before it and is not counted.
        layout: `padded`; or `packed` or `binned`, for attention that keeps a row's sequences apart.
        known: the tokens' scores, found with `keep` under the same weights; the head is then passed by.
        keep: without gradients, find what `known` needs as well.
        plain: all logits at once, the long way.
        model_kwargs: handed to the model as they are.
    """
    inputs, positions, targets, lengths = layout(input_ids, attention_mask, completion_mask)
    outputs = model(
        **inputs,
        **model_kwargs,
        use_cache=False,
        scoring=Request(positions, targets, known, keep, plain),
    )
    tokens = outputs.exact.differentiable_by(outputs.logprobs)
    sums = torch.stack([part.sum() for part in tokens.logprobs.split(lengths)])
    return CompletionScores(sums, tokens, lengths, outputs.aux_loss)


class Request(NamedTuple):
    """What a forward pass is asked for: see `completion_logprobs`."""

    positions: Tensor
    targets: Tensor
    known: TokenScores | None
    keep: bool
    plain: bool


def attach(model: PreTrainedModel) -> None:
    """Let the model's forward pass take `scoring`, a `Request`, and answer with a `ScoredOutput`.

    Without it the forward pass is what it was.
    """
    scorer = _Scorer(model)

    # a function, and not a bound method, whose function accelerate would bind to the model; torch.compile
    # cannot follow a forward pass within a forward pass
    @torch.compiler.disable
    def forward(*args: Any, scoring: Request | None = None, **kwargs: Any) -> Any:
        if scoring is None:
            return scorer.original(*args, **kwargs)
        return scorer.score(scoring, *args, **kwargs)

    model.forward = forward


class _Scorer:
    """A causal language model's forward pass around one change: what its head is asked for."""

    def __init__(self, model: PreTrainedModel):
        self.model = model
        self.original = model.forward

    def score(self, scoring: Request, *args: Any, **kwargs: Any) -> ScoredOutput:
        if scoring.plain:
            return self._plain(scoring, *args, **kwargs)
        head = self.model.get_output_embeddings()
        gradients: list[Tensor | None] = []
        returned: list[Tensor] = []

        def instead(hidden: Tensor) -> Tensor:
            """In the head's place, within its hooks, in a shape that logits have."""
            scores = self._score(hidden.flatten(0, -2)[scoring.positions], scoring, forward)
            gradients.append(scores.gradient)
            return scores.logprobs[None, :, None]

        # an engine expects gradients to come through what its own hooks have made of the result
        hook = head.register_forward_hook(lambda module, args, result: returned.append(result))
        try:
            with _replaced_forward(head, instead) as forward:
                outputs = self.original(*args, **kwargs)
        finally:
            hook.remove()
        scores = TokenScores(returned[0][0, :, 0], *gradients)
        return ScoredOutput(scores.logprobs, Exact(scores), outputs.get("aux_loss"))

    def _plain(self, scoring: Request, *args: Any, **kwargs: Any) -> ScoredOutput:
        outputs = self.original(*args, **kwargs)
        logits = outputs.logits.flatten(0, -2)[scoring.positions]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        logprobs = -nn.functional.cross_entropy(logits, scoring.targets, reduction="none")
        return ScoredOutput(logprobs, Exact(TokenScores(logprobs, None)), outputs.get("aux_loss"))

    def _score(self, hidden: Tensor, scoring: Request, head_forward: Callable) -> TokenScores:
        if scoring.known is not None:
            return known_scores(hidden, scoring.known)
        return token_scores(
            hidden,
            scoring.targets,
            functools.partial(self._logits, head_forward),
            vocabulary=self.model.config.get_text_config().vocab_size,
            trained=any(p.requires_grad for p in self._after_the_body()),
            keep=scoring.keep,
        )

    def _after_the_body(self) -> Iterator[nn.Parameter]:
        """Parameters that stand between the last hidden states and the logits; a tied head is one of them."""
        yield from self.model.get_output_embeddings().parameters()
        for child in self.model.children():
            if child is not self.model.base_model:
                yield from child.parameters()

    def _logits(self, head_forward: Callable, hidden: Tensor) -> Tensor:
        """What the model makes of the last hidden states, by its own code: a scale, a soft cap, a bias.

        Shape (tokens, hidden size) to (tokens, vocabulary). The forward pass runs once more, with hidden
        states in place of the body, and the bare head, without the hooks within which this happens.
        """
        body, head = self.model.base_model, self.model.get_output_embeddings()
        with (
            _replaced_module(self.model, body, _Gives(hidden[None])),
            _replaced_module(self.model, head, _Calls(head_forward)),
        ):
            outputs = self.original(inputs_embeds=hidden[None], use_cache=False)
        return outputs.logits.squeeze(0)  # not [0], whose backward pass would fill another such tensor


@dataclass
class _Hidden(ModelOutput):
    """Last hidden states, and None for whatever else a body may answer."""

    last_hidden_state: Tensor | None = None

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)
        return None


class _Gives(nn.Module):
    """Stands in for a model's body."""

    def __init__(self, hidden: Tensor):
        super().__init__()
        self.hidden = hidden

    def forward(self, *_: Any, **__: Any) -> ModelOutput:
        return _Hidden(self.hidden)


class _Calls(nn.Module):
    """Stands in for a module, without its hooks."""

    def __init__(self, function: Callable):
        super().__init__()
        self.function = function

    def forward(self, *args: Any) -> Any:
        return self.function(*args)


@contextmanager
def _replaced_forward(module: nn.Module, forward: Callable) -> Iterator[Callable]:
    """Another forward for a module, within its hooks; yields the one that it had."""
    before, own = module.forward, module.__dict__.get("forward")
    module.forward = forward
    try:
        yield before
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own


@contextmanager
def _replaced_module(model: nn.Module, module: nn.Module, stand_in: nn.Module) -> Iterator[None]:
    """Another module in the place of a model's direct child."""
    (name,) = (name for name, child in model.named_children() if child is module)
    model._modules[name] = stand_in
    try:
        yield
    finally:
        model._modules[name] = module
