"""What each chat template that axolotl ships does with each part of a conversation, and named templates."""

import re

import pytest
from axolotl.utils.chat_templates import base, get_chat_template
from jinja2 import TemplateError

from axolotl_aot.data.rendering.renderer import Renderer
from axolotl_aot.data.rows import BadRow, Example
from axolotl_aot.errors import AOTDataError
from tests.data.families import FAMILIES, prepare_with, tokenizer_of

# kept: as it stands. moved: all of it is there, in another order or with other white space. dropped: it is
# missing, or what is there does not depend on it. refused: the template raises an error.
VERDICTS = {"k": "kept", "m": "moved", "d": "dropped", "r": "refused"}
# What they are, `conversation` says: padded by white space, a thought as text between tags, or in an
# earlier turn, a tool's result without a call.
PARTS = ["content", "padded", "system", "turns", "reasoning", "thought", "earlier", "tools", "call", "result"]
TABLE = {
    "alpaca": "k k k k d k k d d d",
    "aya": "k m k k d k k d d r",
    "chatml": "k k k k d k k d d k",
    "cohere": "k m k k d k k d d r",
    "command_a": "k k k k d k k d d d",
    "command_a_rag": "k k k k d k k d k k",
    "command_a_tool_use": "k k k k d k k k k k",
    "deepseek_v2": "k k k k d k k d d d",
    "deepseek_v3": "k k k k d d d d r k",
    "exaone": "k k k k d k k d d k",
    "exaone4": "k k k k d d d k k k",
    "falcon_h1": "k k k k d k k k d k",
    "gemma": "k m r k d k k d d r",
    "gemma3": "k m k k d k k d d r",
    "gemma3n": "k m k k d k k d d r",
    "gemma4": "k m k k d k k k k d",
    "gemma4_unified": "k m k k d k k k k d",
    "jamba": "k k k k d k k k k k",
    "llama3": "k m k k d k k d d k",
    "llama3_2_vision": "k k k k d k k k k k",
    "llama4": "k k k k d k k k k k",
    "llava": "k k k k d k k d d k",
    "metharme": "k m k k d k k d d d",
    "mistral_v1": "k k k k d k k d d r",
    "mistral_v2v3": "k m d k d k k k k r",
    "mistral_v3_tekken": "k k d k d k k k k r",
    "mistral_v7_tekken": "k k k k d k k d d r",
    "nemotron_h": "k k k k d k k d d r",
    "phi_3": "k k k k d k k d d d",
    "phi_35": "k k k k d k k d d d",
    "phi_4": "k k k k d k k d d d",
    "pixtral": "k k d k d k k d d r",
    "qwen2_vl": "k k k k d k k d d k",
    "qwen3": "k k k k k m d k k k",
    "qwen3_5": "k k k k k m d k k k",
    "qwen_25": "k k k k d k k k k k",
}


def conversation(part: str, value: str) -> tuple[list, dict, list | None, list[str]]:
    """Prompt, completion, tools, and the texts that belong to the part; the value is in them."""
    user, answer = {"role": "user", "content": "Red or blue?"}, {"role": "assistant", "content": "Blue."}
    thinking = {"role": "assistant", "content": f"<think>{value}</think>Blue, as ever."}
    tool = {
        "name": f"{value}_tool".replace(" ", "_"),
        "description": f"The {value} of a city.",
        "parameters": {
            "type": "object",
            "properties": {f"{value}_city".replace(" ", "_"): {"type": "string"}},
        },
    }
    arguments = {"city": f"The {value} of it", "days": 4711}
    call = {"id": "abcdefghi", "type": "function", "function": {"name": "weather", "arguments": arguments}}
    result = {"role": "tool", "content": f"The {value} is fine.", "tool_call_id": "abcdefghi"}
    several = [
        {"role": "system", "content": f"Be {value}."},
        {"role": "user", "content": f"Red {value}?"},
        {"role": "assistant", "content": f"Blue {value}."},
        {"role": "user", "content": f"Sure {value}?"},
    ]
    ending = {"role": "assistant", "content": f"Sure as\n{value}."}
    padded = {"role": "assistant", "content": f"\n\n  Sure {value}. \n"}
    return {
        "content": (
            [{**user, "content": f"Red  {value}?"}],
            ending,
            None,
            [f"Red  {value}?", ending["content"]],
        ),
        "padded": ([user], padded, None, [padded["content"]]),
        "system": ([several[0], user], answer, None, [several[0]["content"], user["content"]]),
        "turns": (several[1:], ending, None, [m["content"] for m in (*several[1:], ending)]),
        "reasoning": ([user], {**answer, "reasoning_content": value}, None, [value]),
        "thought": ([user], thinking, None, [thinking["content"]]),
        "earlier": ([user, thinking, user], answer, None, [thinking["content"]]),
        "tools": (
            [user],
            answer,
            [{"type": "function", "function": tool}],
            [tool["name"], tool["description"], *tool["parameters"]["properties"]],
        ),
        "call": (
            [user],
            {"role": "assistant", "content": "", "tool_calls": [call]},
            None,
            ["weather", "city", arguments["city"], "days", "4711"],
        ),
        "result": ([user, answer, result], ending, None, [result["content"]]),
    }[part]


def squeezed(text: str) -> str:
    return "".join(text.split())


def observed(tokenizer, template: str, part: str) -> str:
    """The verdict by two renderings of transformers' own, with different values."""
    first, second = "hollow sparrow", "crooked lantern"
    assert not any(word in template for word in f"{first} {second}".split())
    renderings = []
    for value in (first, second):
        prompt, answer, tools, _ = conversation(part, value)
        try:
            renderings.append(
                tokenizer.apply_chat_template(
                    [*prompt, answer], tools=tools, chat_template=template, tokenize=False
                )
            )
        except (TemplateError, TypeError):
            return "refused"
    text, other = renderings
    texts = conversation(part, first)[3]
    if text == other:
        return "dropped"
    places = [text.find(each) for each in texts]
    if -1 not in places and (part in ("tools", "call") or places == sorted(places)):
        return "kept"
    pieces = [piece for each in texts for piece in re.split("</?think>", each)]
    return "moved" if all(squeezed(piece) in squeezed(text) for piece in pieces) else "dropped"


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizer_of(FAMILIES["chatml"])


def test_the_table_has_all_templates():
    missing, gone = set(base._CHAT_TEMPLATES) - set(TABLE), set(TABLE) - set(base._CHAT_TEMPLATES)
    assert not missing, (
        f"axolotl ships chat templates that TABLE lacks: {sorted(missing)}; look at what they make of each "
        "part (`observed` says it), and add a line for each"
    )
    assert not gone, f"axolotl ships these chat templates no longer: {sorted(gone)}; remove them from TABLE"


CASES = [
    (template, part, VERDICTS[verdict])
    for template, verdicts in TABLE.items()
    for part, verdict in zip(PARTS, verdicts.split(), strict=True)
]


@pytest.mark.parametrize(("template", "part", "verdict"), CASES)
def test_what_a_template_leaves_out_is_refused_and_nothing_else(tokenizer, template, part, verdict):
    jinja = get_chat_template(template)
    assert observed(tokenizer, jinja, part) == verdict
    prompt, answer, tools, _ = conversation(part, "hollow sparrow")
    example = Example(prompt, ([answer],), True, tools)
    renderer = Renderer(tokenizer, jinja, {})
    may_be_dropped = part == "earlier"  # thoughts of earlier turns are left out on purpose
    if verdict in ("kept", "moved") or (verdict == "dropped" and may_be_dropped):
        (whole,) = renderer.text(example).wholes
        assert whole == tokenizer.apply_chat_template(
            [*prompt, answer], tools=tools, chat_template=jinja, tokenize=False
        )
    else:
        with pytest.raises(
            BadRow, match=r"leaves out|the chat template fails|in another way than its prompt"
        ):
            renderer.text(example)


# --- Named templates -----------------------------------------------------------------------------

TOOLS = [
    {"type": "function", "function": {"name": "search", "parameters": {"type": "object", "properties": {}}}}
]
USER = {"role": "user", "content": "Red or blue?"}


def written(start: str) -> str:
    """A chat template that writes tools and messages, and begins with a text of its own."""
    return (
        start
        + "{{ tools | tojson if tools }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )


NAMED = {name: written(f"<{name}>") for name in ("default", "tool_use", "rag")}
ROWS = [
    {
        "messages": [USER],
        **({"tools": TOOLS} if i % 2 else {}),
        "chosen": [{"role": "assistant", "content": "Blue."}],
        "rejected": [{"role": "assistant", "content": "Red."}],
    }
    for i in range(4)
]


@pytest.fixture
def prepare(load, base_config, tmp_path):
    """The training set of ROWS with a tokenizer that has the given templates."""

    def prepare(templates, keys: dict | None = None, rows=ROWS, **options):
        tokenizer = tokenizer_of(FAMILIES["chatml"])
        tokenizer.chat_template = templates
        config = {**base_config, "rl": "aot", **(keys or {})}
        return tokenizer, prepare_with(
            tokenizer, rows, config, load, tmp_path, type="chat_template", **options
        )

    return prepare


CHOICES = {
    "none": ({}, {}),
    "entry": ({}, {"chat_template": "tokenizer_default"}),
    "entry, fallback": ({}, {"chat_template": "tokenizer_default_fallback_chatml"}),
    "yaml": ({"chat_template": "tokenizer_default"}, {}),
    "yaml, fallback": ({"chat_template": "tokenizer_default_fallback_chatml"}, {}),
}
SETS = {
    "default, tool_use": NAMED,
    "default, rag": {name: NAMED[name] for name in ("default", "rag")},
}


@pytest.mark.parametrize("templates", SETS.values(), ids=SETS)
@pytest.mark.parametrize(("keys", "options"), CHOICES.values(), ids=CHOICES)
def test_each_row_has_the_template_that_the_tokenizer_chooses(prepare, templates, keys, options):
    tokenizer, found = prepare(templates, keys, **options)
    assert len(found) == len(ROWS)
    for row, made in zip(ROWS, found, strict=True):
        for name in ("chosen", "rejected"):
            messages = [*row["messages"], *row[name]]
            whole = tokenizer.apply_chat_template(
                messages, tools=row.get("tools"), tokenize=True, return_dict=False
            )
            assert made["prompt_ids"] + made[f"{name}_ids"] == whole
    starts = {made["prompt"].split(">")[0] for made in found}
    assert starts == ({"<default", "<tool_use"} if "tool_use" in templates else {"<default"})


def test_another_choice_of_the_entry_goes_before_the_named_templates(prepare):
    _, found = prepare(NAMED, rows=ROWS[:1], chat_template="chatml")
    assert found[0]["prompt"].startswith("<|im_start|>")


def test_named_templates_without_one_for_all(prepare):
    message = r"several chat templates \(rag, second\), and none .* `default`; set .*chat_template_jinja"
    with pytest.raises(AOTDataError, match=message):
        prepare({"rag": NAMED["rag"], "second": NAMED["rag"]})
    # rows with tools have one
    only_tools = {"tool_use": NAMED["tool_use"]}
    _, found = prepare(only_tools, rows=[row for row in ROWS if "tools" in row])
    assert all(made["prompt"].startswith("<tool_use>") for made in found)
    with pytest.raises(AOTDataError, match=r"row 1: it has no tools, and .* \(tool_use\), and none"):
        prepare(only_tools)


def test_what_a_named_template_leaves_out(prepare):
    silent = NAMED["default"].replace("{{ tools | tojson if tools }}", "")
    with pytest.raises(AOTDataError, match="row 2: the chat template leaves out the tool 'search'"):
        prepare({"default": silent})


def test_another_named_template_prepares_anew(prepare):
    keys = {"skip_prepare_dataset": False}
    first = prepare(NAMED, keys)[1]
    second = prepare({**NAMED, "tool_use": written("<changed>")}, keys)[1]
    assert [row["prompt"].split(">")[0] for row in first] == ["<default", "<tool_use"] * 2
    assert [row["prompt"].split(">")[0] for row in second] == ["<default", "<changed"] * 2
