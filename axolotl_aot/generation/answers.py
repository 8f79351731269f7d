"""From sampled tokens to answers as training will read them."""

from collections.abc import Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from axolotl_aot.data.prompts import Prompt
from axolotl_aot.data.rendering.renderer import Renderer, Text, tokenize
from axolotl_aot.data.rows import BadRow, Example, is_blank


class Sampled(NamedTuple):
    """An answer's tokens, its end token included if it has `finished`."""

    ids: list[int]
    finished: bool


class Answer(NamedTuple):
    """An answer as text.

    text: what training reads. shown: the answer itself, for rewards; it differs where the prompt is formatted
    text, and a format puts something around the answer. as_sampled: whether training will see exactly the
    sampled tokens, its end token included, and besides what a chat template writes behind that token.
    problem: why training cannot read it; None where it can.
    """

    text: str
    shown: str
    finished: bool
    as_sampled: bool
    problem: str | None


def end_ids(prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The tokens with which chat templates, or a type's format, end an answer.

    Only special tokens count: a template that ends a turn with plain text would cut answers off at any such
    text; there the tokenizer's own end token is all there is.
    """
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    firsts = {after: _ids(tokenizer, after)[:1] for after in {prompt.after for prompt in prompts}}
    return {token for ids in firsts.values() for token in ids if token in special}


def room_behind(prompt: Prompt, tokenizer: PreTrainedTokenizerBase) -> int:
    """How many tokens training will put behind an answer's end token."""
    return max(0, len(_ids(tokenizer, prompt.after)) - 1)


def read_answers(prompt: Prompt, sampled: Sequence[Sampled], renderer: Renderer) -> list[Answer]:
    """One prompt's answers. renderer: that of the prompt."""
    tokenizer = renderer.tokenizer
    asked = tokenizer.decode(prompt.ids)
    return [_answer(prompt, asked, each, renderer) for each in sampled]


def _answer(prompt: Prompt, asked: str, sampled: Sampled, renderer: Renderer) -> Answer:
    tokenizer = renderer.tokenizer
    own = sampled.ids[:-1] if sampled.finished else sampled.ids
    # decoded with the prompt: by itself an answer would lose the white space that it begins with
    whole = tokenizer.decode([*prompt.ids, *own])
    text = whole[len(asked) :] if whole.startswith(asked) else tokenizer.decode(own)
    shown = text.removeprefix(prompt.before)
    if not prompt.is_text:
        text = shown
    elif sampled.finished and sampled.ids[-1] != tokenizer.eos_token_id:
        text += prompt.after.removesuffix(tokenizer.eos_token or "")  # training adds the end token
    if is_blank(text):
        return Answer(text, shown, sampled.finished, False, "it is empty")
    try:
        trained = _as_trained(prompt, text, renderer)
    except BadRow as reason:
        return Answer(text, shown, sampled.finished, False, str(reason))
    after = _ids(tokenizer, prompt.after)
    same = sampled.finished and trained in (
        [*prompt.ids, *sampled.ids],
        [*prompt.ids, *own, *after] if after[:1] == sampled.ids[-1:] else None,
    )
    return Answer(text, shown, sampled.finished, same, None)


def _as_trained(prompt: Prompt, text: str, renderer: Renderer) -> list[int]:
    """The tokens of the prompt and the answer in training."""
    answer = text if prompt.is_text else [{"role": "assistant", "content": text}]
    rendered: Text = renderer.text(Example(prompt.messages, (answer,), True, prompt.tools))
    (tokens,) = tokenize(renderer.tokenizer, [rendered])
    (completion,) = tokens.completions
    return [*tokens.prompt, *completion]


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
