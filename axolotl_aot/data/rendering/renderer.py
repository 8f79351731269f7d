"""From messages to text by a chat template, and from text to tokens."""

import logging
from typing import TYPE_CHECKING, Any, NamedTuple

from jinja2 import TemplateError

from axolotl_aot.data.rendering.completeness import Completeness
from axolotl_aot.data.rendering.parts import REASONING
from axolotl_aot.data.rendering.prefixes import common_length
from axolotl_aot.data.rendering.skeletons import Rendered
from axolotl_aot.data.rendering.templates import Template, template_for
from axolotl_aot.data.rows import BadRow, Example, Message

if TYPE_CHECKING:
    from transformers import BatchEncoding, PreTrainedTokenizerBase

LOG = logging.getLogger(__name__)

PROBE = "§"  # an answer made up for comparison; no real answer and no template begins with it

# What a chat template raises for messages that it was not made for.
TEMPLATE_ERRORS = (TemplateError, TypeError, KeyError, ValueError)


class Text(NamedTuple):
    """A prompt and, as one text each, the prompt with each of its completions.

    special: whether the tokenizer adds its special tokens, which templates write themselves.
    """

    prompt: str
    wholes: list[str]
    special: bool


class Renderer:
    """Makes text of examples: of messages by the chat template; text is taken as it is.

    template: the chat template, or the tokenizer's named ones; None where the examples are text. kwargs: of
    `chat_template_kwargs`.
    """

    def __init__(
        self, tokenizer: "PreTrainedTokenizerBase", template: Template | None, kwargs: dict[str, Any]
    ):
        self.tokenizer = tokenizer
        self.template = template
        self.kwargs = kwargs
        self._completeness = Completeness(self._render)
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
        asking = self._render(example.prompt, example.tools, add_generation_prompt=True)
        wholes = [self._render([*example.prompt, *c], example.tools) for c in example.completions]
        prompt = asking
        for whole in wholes:
            prompt = self._prefix(prompt, whole, example)
        self._require_all_there(example, asking, wholes)
        return Text(prompt, wholes, special=False)

    def _require_all_there(self, example: Example, asking: str, wholes: list[str]) -> None:
        """Refuse an example of which the template leaves something out: it would be trained without that."""
        template = template_for(self.template, self.tokenizer, example.tools)
        start = len(example.prompt)
        self._completeness.require(
            Rendered(example.prompt, example.tools, asking, True, answers=start, first=0), template
        )
        for completion, whole in zip(example.completions, wholes, strict=True):
            messages = [*example.prompt, *completion]
            self._completeness.require(
                Rendered(messages, example.tools, whole, False, answers=start, first=start), template
            )

    def _prefix(self, prompt: str, whole: str, example: Example) -> str:
        """The part of the prompt that the whole text begins with; it must hold all of the prompt's messages.

        Some templates ask for an answer with another text than they render before one, such as an empty
        thought: there the completion begins where the two texts differ.
        """
        if whole.startswith(prompt):
            return prompt
        # the answer may by chance begin like the text that asks for one: made-up answers do not, and show
        # where the template's own text differs
        others = [self._render([*example.prompt, probe], example.tools) for probe in _probes(example)]
        length = min(common_length(prompt, text) for text in (whole, *others))
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
        # As in TRL, an end-of-sequence token is written where the text lacks one; the beginning-of-sequence
        # token is added by the tokenizer, unless the prompt begins with it.
        eos, bos = self.tokenizer.eos_token or "", self.tokenizer.bos_token
        wholes = [prompt + (c if c.endswith(eos) else c + eos) for c in completions]
        return Text(prompt, wholes, special=not (bos and prompt.startswith(bos)))

    def _render(
        self, messages: list[Message], tools: list[dict] | None, add_generation_prompt: bool = False
    ) -> str:
        failure = None
        for attempt in _attempts(messages):
            try:
                return self._applied(attempt, tools, add_generation_prompt)
            except TEMPLATE_ERRORS as error:
                failure = failure or error  # the first one, of the messages as they are, says more
        roles = ", ".join(message["role"] for message in messages)
        raise BadRow(f"the chat template fails for messages of {roles}: {failure}") from failure

    def _applied(self, messages: list[Message], tools: list[dict] | None, add_generation_prompt: bool) -> str:
        return self.tokenizer.apply_chat_template(
            messages,
            tools=tools,
            chat_template=template_for(self.template, self.tokenizer, tools),
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
            **self.kwargs,
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
        # completions share their prompt's tokens: as many as all of the whole texts begin with
        first, length = wholes[0]
        for ids, end in wholes[1:]:
            length = common_length(first[:length], ids[:end])
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
        prompt_ids = tokenizer(prompts, **options)["input_ids"]
        return [(whole, common_length(whole, prompt)) for whole, prompt in zip(ids, prompt_ids, strict=True)]
    return [
        (ids[i], _end(encoded, i, len(prompt), len(whole)))
        for i, (whole, prompt) in enumerate(zip(wholes, prompts, strict=True))
    ]


def _end(encoded: "BatchEncoding", i: int, prompt: int, whole: int) -> int:
    """The number of tokens that end within the prompt's characters."""
    # The completion's first character may belong to no token: some tokenizers drop characters, or leave white
    # space out of the offsets of tokens. Then the next one is asked for.
    tokens = (encoded.char_to_token(i, character) for character in range(prompt, whole))
    end = next((token for token in tokens if token is not None), len(encoded["input_ids"][i]))
    while end and (span := encoded.token_to_chars(i, end - 1)) and span.end > prompt:
        end -= 1
    return end


def _attempts(messages: list[Message]) -> list[list[Message]]:
    """The messages; and, for templates that fail on null content, the same with empty text in its place."""
    if all(message["content"] is not None for message in messages):
        return [messages]
    return [messages, [{**message, "content": message["content"] or ""} for message in messages]]


def _probes(example: Example) -> list[Message]:
    """Made-up answers to compare with, without a thought and, where the example has thoughts, with one."""
    text = {"role": "assistant", "content": PROBE}
    answers = [message for c in example.completions for message in c]
    thoughts = {name: PROBE for name in REASONING if any(answer.get(name) for answer in answers)}
    return [text, {**text, **thoughts}] if thoughts else [text]


def _no_prefix(prompt: str, whole: str) -> str:
    same = common_length(prompt, whole)
    return (
        "the chat template renders the whole conversation in another way than its prompt, so that the "
        f"completion cannot be told from it. They are equal for {same} characters; then the prompt goes on "
        f"{_around(prompt, same)} and the whole {_around(whole, same)}"
    )


def _around(text: str, position: int) -> str:
    return repr(text[max(0, position - 40) : position + 60])
