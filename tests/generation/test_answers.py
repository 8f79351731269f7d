"""Sampled tokens as text, and whether training would make the same tokens of that text."""

import pytest
from transformers import AutoTokenizer

from axolotl_aot.data.prompts import Prompt
from axolotl_aot.data.rendering.renderer import Renderer
from axolotl_aot.generation.answers import Sampled, end_ids, read_answers
from axolotl_aot.quickstart.base_model import make_tokenizer

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# as in Mistral's, white space comes between the prompt and an answer
SPACED = (
    "{% for m in messages %}{% if m['role'] == 'user' %}[Q]{{ m['content'] }}[/Q]{% else %}"
    " {{ m['content'] }}</s>{% endif %}{% endfor %}"
)


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    return AutoTokenizer.from_pretrained(tiny_model)


def of_text(tokenizer, text: str) -> Prompt:
    return Prompt(1, text, None, text, tokenizer(text)["input_ids"], "", tokenizer.eos_token)


def of_chat(tokenizer, before: str, after: str, text: str) -> Prompt:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return Prompt(1, [{"role": "user", "content": "red?"}], None, text, ids, before, after)


def test_text_keeps_the_white_space_that_it_begins_with():
    """A tokenizer of whole words writes a space between two of them only when it decodes both."""
    words = make_tokenizer()
    prompt = of_text(words, "sort d a :")
    ids = words("a d </s>", add_special_tokens=False)["input_ids"]
    answers = read_answers(prompt, [Sampled(ids, True), Sampled(ids[:1], False)], Renderer(words, None, {}))
    assert [(a.text, a.finished, a.as_sampled) for a in answers] == [
        (" a d", True, True),
        (" a", False, False),
    ]


@pytest.mark.parametrize(
    ("template", "prompt", "before", "after"),
    [
        (CHATML, "<|im_start|>user\nred?<|im_end|>\n<|im_start|>assistant\n", "", "<|im_end|>\n"),
        (SPACED, "[Q]red?[/Q]", " ", "</s>"),
    ],
    ids=["chatml", "spaced"],
)
def test_chats(tokenizer, template, prompt, before, after):
    prompt = of_chat(tokenizer, before, after, prompt)
    renderer = Renderer(tokenizer, template, {})
    end = tokenizer(after, add_special_tokens=False)["input_ids"][0]
    assert end_ids([prompt], tokenizer) == {end}
    ids = tokenizer(f"{before}cat dog", add_special_tokens=False)["input_ids"]
    # the same text in one token a byte, which no tokenizer would make of it
    bytes_ = [tokenizer.convert_tokens_to_ids(c) for c in before.replace(" ", "Ġ") + "catĠdog"]
    assert bytes_ != ids and tokenizer.decode(bytes_) == tokenizer.decode(ids)
    other = tokenizer.convert_tokens_to_ids("<|im_end|>" if after == "</s>" else "</s>")
    cases = [
        (Sampled([*ids, end], True), "cat dog", True, None),
        (Sampled([*bytes_, end], True), "cat dog", False, None),
        (Sampled([*ids, other], True), "cat dog", False, None),  # training ends it with the template's end
        (Sampled(ids, False), "cat dog", False, None),
        (Sampled([end], True), "", False, "it is empty"),
    ]
    answers = read_answers(prompt, [case[0] for case in cases], renderer)
    assert [(a.text, a.as_sampled, a.problem) for a in answers] == [case[1:] for case in cases]


def test_a_formats_own_end_is_kept_in_the_text_and_not_shown(tokenizer):
    """As `chatml.ultra` trains: its end, and then the tokenizer's."""
    prompt = of_text(tokenizer, "Q: red?\nA:")._replace(after="<|im_end|></s>")
    ids = tokenizer(" cat", add_special_tokens=False)["input_ids"]
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert end_ids([prompt], tokenizer) == {end}
    sampled = [Sampled([*ids, end], True), Sampled([*ids, tokenizer.eos_token_id], True)]
    answers = read_answers(prompt, sampled, Renderer(tokenizer, None, {}))
    assert [(a.text, a.shown, a.as_sampled) for a in answers] == [
        (" cat<|im_end|>", " cat", True),
        (" cat", " cat", True),
    ]


def test_a_turn_that_ends_with_plain_text_does_not_end_answers(tokenizer):
    assert end_ids([of_chat(tokenizer, "", "\nUser:", "red?\nBot: ")], tokenizer) == set()
