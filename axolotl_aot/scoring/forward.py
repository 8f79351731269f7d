"""Log-probabilities of completions, computed inside a causal language model's own forward pass.

`attach` teaches a model of transformers to answer, in its own forward pass, with the log-probabilities of
chosen tokens in place of the logits of all. Because that happens inside the model, whatever is wrapped
around it (PEFT, DDP, FSDP2, DeepSpeed, autocast) sees an ordinary forward pass: parameters are gathered
and gradients reduced as always.
"""

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple
from weakref import WeakSet

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from axolotl_aot.scoring.head import TokenScores, cached_token_scores, token_scores
from axolotl_aot.scoring.layouts import Layout, padded


class UncastScores:
    """Scores in the precision they were computed in, without a graph.

    accelerate and FSDP2 cast every tensor that a model returns to half precision. They do not look into
    this object.
    """

    def __init__(self, scores: TokenScores):
        self.scores = scores._replace(logprobs=scores.logprobs.detach())

    def differentiable_by(self, cast: Tensor) -> TokenScores:
        """The exact scores, with the graph of the log-probabilities that an engine may have cast."""
        exact = self.scores.logprobs
        if cast.dtype != exact.dtype:
            cast = cast.to(exact.dtype)
            cast = cast + (exact - cast.detach())
        return self.scores._replace(logprobs=cast)


@dataclass
class ScoredOutput(ModelOutput):
    """What a model with `attach` returns.

    logprobs: of each completion token, for the gradient to pass through. uncast: the same values exactly,
    and what was saved for the backward pass. aux_loss: the router's loss of a mixture of experts.
    """

    logprobs: Tensor | None = None
    uncast: UncastScores | None = None
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
    cached_scores: TokenScores | None = None,
    save_grad: bool = False,
    full_logits: bool = False,
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
        layout: `padded`; `packed` or `binned`, for attention that keeps a row's sequences apart; or one that
            shares prompts.
        cached_scores: the tokens' scores, found with `save_grad` under the same weights; the head is then
            not run again.
        save_grad: under `no_grad`, find what `cached_scores` needs as well.
        full_logits: compute all logits at once, as the naive reference does.
        model_kwargs: handed to the model as they are.
    """
    inputs, positions, targets, lengths = layout(input_ids, attention_mask, completion_mask)
    outputs = model(
        **inputs,
        **model_kwargs,
        use_cache=False,
        scoring=Request(positions, targets, cached_scores, save_grad, full_logits),
    )
    tokens = outputs.uncast.differentiable_by(outputs.logprobs)
    sums = torch.stack([part.sum() for part in tokens.logprobs.split(lengths)])
    return CompletionScores(sums, tokens, lengths, outputs.aux_loss)


class Request(NamedTuple):
    """What a forward pass is asked for: see `completion_logprobs`."""

    positions: Tensor
    targets: Tensor
    cached_scores: TokenScores | None
    save_grad: bool
    full_logits: bool


def attach(model: PreTrainedModel) -> None:
    """Let the model's forward pass take `scoring`, a `Request`, and return a `ScoredOutput`.

    Without that argument the forward pass is what it was. A second call does nothing.
    """
    if inspect.unwrap(model.forward) in _SCORING_FORWARDS:
        return
    scorer = _ScoringForward(model)

    # This must be a plain function: accelerate takes a bound method's function and binds it to the model.
    def forward(*args: Any, scoring: Request | None = None, **kwargs: Any) -> Any:
        if scoring is None:
            return scorer.original(*args, **kwargs)
        return scorer.score(scoring, *args, **kwargs)

    _SCORING_FORWARDS.add(forward)
    # torch.compile cannot trace a forward pass that runs within a forward pass
    model.forward = torch.compiler.disable(forward)


# What `attach` has put in place; models come and go, and this must not keep them alive.
_SCORING_FORWARDS: WeakSet[Callable] = WeakSet()


class _ScoringForward:
    """A causal language model's forward pass with one change: what its head is asked for."""

    def __init__(self, model: PreTrainedModel):
        self.model = model
        self.original = model.forward

    def score(self, scoring: Request, *args: Any, **kwargs: Any) -> ScoredOutput:
        if scoring.full_logits:
            return self._score_full_logits(scoring, *args, **kwargs)
        head = self.model.get_output_embeddings()
        gradients: list[Tensor | None] = []
        returned: list[Tensor] = []

        def score_instead(hidden: Tensor) -> Tensor:
            """Runs in the head's place, within its hooks; returns a shape that logits could have."""
            scores = self._score(hidden.flatten(0, -2)[scoring.positions], scoring, forward)
            gradients.append(scores.gradient)
            return scores.logprobs[None, :, None]

        # FSDP2 and DeepSpeed wrap a module's result in hooks, and expect gradients to pass through those
        hook = head.register_forward_hook(lambda module, args, result: returned.append(result))
        try:
            with _replaced_forward(head, score_instead) as forward:
                outputs = self.original(*args, **kwargs)
        finally:
            hook.remove()
        scores = TokenScores(returned[0][0, :, 0], *gradients)
        return ScoredOutput(scores.logprobs, UncastScores(scores), outputs.get("aux_loss"))

    def _score_full_logits(self, scoring: Request, *args: Any, **kwargs: Any) -> ScoredOutput:
        outputs = self.original(*args, **kwargs)
        logits = outputs.logits.flatten(0, -2)[scoring.positions]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        logprobs = -nn.functional.cross_entropy(logits, scoring.targets, reduction="none")
        return ScoredOutput(logprobs, UncastScores(TokenScores(logprobs, None)), outputs.get("aux_loss"))

    def _score(self, hidden: Tensor, scoring: Request, head_forward: Callable) -> TokenScores:
        if scoring.cached_scores is not None:
            return cached_token_scores(hidden, scoring.cached_scores)
        return token_scores(
            hidden,
            scoring.targets,
            functools.partial(self._logits, head_forward),
            vocabulary=self.model.config.get_text_config().vocab_size,
            head_requires_grad=any(p.requires_grad for p in self._after_the_body()),
            save_grad=scoring.save_grad,
        )

    def _after_the_body(self) -> Iterator[nn.Parameter]:
        """The parameters between the last hidden states and the logits, a tied head's among them."""
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
            _replaced_module(self.model, body, _StubBody(hidden[None])),
            _replaced_module(self.model, head, _StubHead(head_forward)),
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


class _StubBody(nn.Module):
    """Stands in for a model's body, and returns hidden states that were computed before."""

    def __init__(self, hidden: Tensor):
        super().__init__()
        self.hidden = hidden

    def forward(self, *_: Any, **__: Any) -> ModelOutput:
        return _Hidden(self.hidden)


class _StubHead(nn.Module):
    """Stands in for a model's head: its forward pass without its hooks."""

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
