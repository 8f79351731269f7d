"""From messages to text by a chat template, and from text to tokens.

May import `axolotl_aot.data.rows`; jinja2, and transformers for types only.
"""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from jinja2 import TemplateError

from axolotl_aot.data.rows import BadRow, Example, Message

if TYPE_CHECKING:
    from transformers import BatchEncoding, PreTrainedTokenizerBase

LOG = logging.getLogger(__name__)

# What a chat template raises for messages that it was not made for.
TEMPLATE_ERRORS = (TemplateError, TypeError, KeyError, ValueError)
# Properties of messages that not every chat template renders.
OPTIONAL_PROPERTIES = ("tool_calls", "reasoning_content")


class Text(NamedTuple):
    """A prompt and, as one text each, the prompt with each of its completions.

    special: whether the tokenizer adds its special tokens, which templates write themselves.
    """

    prompt: str
    wholes: list[str]
    special: bool


class Renderer:
    """Renders examples: messages by the chat template; text is taken as it is.

    template: the chat template; None where the examples are text. kwargs: of `chat_template_kwargs`.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", template: str | None, kwargs: dict[str, Any]):
        self.tokenizer = tokenizer
        self.template = template
        self.kwargs = kwargs
        self._warned = False

    def text(self, example: Example) -> Text:
        """Prompt and completions rendered together, so that the completion is what follows the prompt.

        Raises:
            BadRow: the template refuses the messages, would leave something out, or does not begin the
                whole conversation with the prompt.
        """
        if isinstance(example.prompt, str):
            return self._plain(example.prompt, example.completions)
        if not example.prompt:
            raise BadRow("the prompt is empty: there is no message before the completion")
        prompt = self._render(example.prompt, example.tools, add_generation_prompt=True)
        wholes = [self._render([*example.prompt, *c], example.tools) for c in example.completions]
        for whole in wholes:
            prompt = self._prefix(prompt, whole, example)
            if whole == prompt:
                raise BadRow("the chat template renders nothing of the completion")
        return Text(prompt, wholes, special=False)

    def _prefix(self, prompt: str, whole: str, example: Example) -> str:
        """The prompt, as far as the whole begins with it; all of its messages must be in there.

        Some templates begin the assistant's turn in another way than they render it, as with an empty
        thought: there the completion begins where the two part.
        """
        if whole.startswith(prompt):
            return prompt
        length = _common_length(prompt, whole)
        if length <= len(self._render(example.prompt, example.tools)):
            raise BadRow(_no_prefix(prompt, whole))
        if not self._warned:
            self._warned = True
            LOG.warning(
                "The chat template begins the assistant's turn with "
                f"{_around(prompt, length)}, and renders it as {_around(whole, length)}; the completion is "
                "what follows where they part. When the model answers, it will be given the first."
            )
        return prompt[:length]

    def _plain(self, prompt: str, completions: tuple[str, ...]) -> Text:
        # as TRL does with text: the end-of-sequence token is written where it is missing; one at the
        # beginning is the tokenizer's to add, unless it is there
        eos, bos = self.tokenizer.eos_token or "", self.tokenizer.bos_token
        wholes = [prompt + (c if c.endswith(eos) else c + eos) for c in completions]
        return Text(prompt, wholes, special=not (bos and prompt.startswith(bos)))

    def _render(
        self, messages: list[Message], tools: list[dict] | None, add_generation_prompt: bool = False
    ) -> str:
        self._require_support(messages, tools)
        try:
            return self._applied(messages, tools, add_generation_prompt)
        except TEMPLATE_ERRORS as error:
            failure = error
        if any(message["content"] is None for message in messages):  # not every template expects it
            messages = [{**message, "content": message["content"] or ""} for message in messages]
            try:
                return self._applied(messages, tools, add_generation_prompt)
            except TEMPLATE_ERRORS:
                pass  # the failure with the messages as they are says more
        roles = ", ".join(message["role"] for message in messages)
        raise BadRow(f"the chat template fails for messages of {roles}: {failure}") from failure

    def _applied(self, messages: list[Message], tools: list[dict] | None, add_generation_prompt: bool) -> str:
        return self.tokenizer.apply_chat_template(
            messages,
            tools=tools,
            chat_template=self.template,
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
            **self.kwargs,
        )

    def _require_support(self, messages: list[Message], tools: list[dict] | None) -> None:
        absent = [name for name in OPTIONAL_PROPERTIES if name not in self.template]
        for name in absent:
            if any(message.get(name) for message in messages):
                raise BadRow(
                    f"a message has `{name}`, which the chat template would leave out; choose another "
                    "chat_template, or map it with message_property_mappings"
                )
        if tools and "tools" not in self.template:
            raise BadRow(
                "the row has tools, which the chat template would leave out; choose another chat_template"
            )


class Tokens(NamedTuple):
    """Token ids of a prompt, and of each of its completions."""

    prompt: list[int]
    completions: list[list[int]]


def tokenize(tokenizer: "PreTrainedTokenizerBase", texts: list[Text]) -> list[Tokens]:
    """Each whole text tokenized once, and split where the prompt's text ends.

    A token over the boundary belongs to the completion: the whole's tokens are those of the template.
    """
    found: dict[int, list[tuple[list[int], int]]] = {i: [] for i in range(len(texts))}
    for special in (False, True):
        chosen = [
            (i, whole) for i, text in enumerate(texts) if text.special is special for whole in text.wholes
        ]
        if not chosen:
            continue
        splits = _splits(tokenizer, [w for _, w in chosen], [texts[i].prompt for i, _ in chosen], special)
        for (i, _), split in zip(chosen, splits, strict=True):
            found[i].append(split)
    tokens = []
    for wholes in found.values():
        # completions share their prompt's tokens, whatever a token over the boundary looks like
        first, length = wholes[0]
        for ids, end in wholes[1:]:
            length = _common_length(first[:length], ids[:end])
        tokens.append(Tokens(first[:length], [ids[length:] for ids, _ in wholes]))
    return tokens


def _splits(
    tokenizer: "PreTrainedTokenizerBase", wholes: list[str], prompts: list[str], special: bool
) -> list[tuple[list[int], int]]:
    """Each whole's tokens, and the number of those that belong to its prompt."""
    options = {"add_special_tokens": special, "return_attention_mask": False, "verbose": False}
    encoded = tokenizer(wholes, **options)
    ids = encoded["input_ids"]
    if not tokenizer.is_fast:
        own = tokenizer(prompts, **options)["input_ids"]
        return [(whole, _common_length(whole, prompt)) for whole, prompt in zip(ids, own, strict=True)]
    return [
        (ids[i], _end(encoded, i, len(prompt), len(whole)))
        for i, (whole, prompt) in enumerate(zip(wholes, prompts, strict=True))
    ]


def _end(encoded: "BatchEncoding", i: int, prompt: int, whole: int) -> int:
    """The number of tokens that end within the prompt's characters."""
    # a character that the tokenizer drops, or white space whose offsets it trims, has no token
    tokens = (encoded.char_to_token(i, character) for character in range(prompt, whole))
    end = next((token for token in tokens if token is not None), len(encoded["input_ids"][i]))
    while end and (span := encoded.token_to_chars(i, end - 1)) and span.end > prompt:
        end -= 1
    return end


def _common_length(first: Sequence, second: Sequence) -> int:
    """How many items two sequences have in common at their beginning."""
    shorter = min(len(first), len(second))
    if first[:shorter] == second[:shorter]:
        return shorter
    return next(i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)


def _no_prefix(prompt: str, whole: str) -> str:
    same = _common_length(prompt, whole)
    return (
        "the chat template renders the whole conversation in another way than its prompt, so that the "
        f"completion cannot be told from it. They are equal for {same} characters; then the prompt goes on "
        f"{_around(prompt, same)} and the whole {_around(whole, same)}"
    )


def _around(text: str, position: int) -> str:
    return repr(text[max(0, position - 40) : position + 60])
