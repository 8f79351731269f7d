"""Golden tests: tokens of prompt and completion are those of the tokenizer's template, whole."""

import pytest
from axolotl.utils.chat_templates import get_chat_template

from axolotl_aot.data.rendering.renderer import Renderer, Text, tokenize
from axolotl_aot.data.rows import BadRow, Example
from axolotl_aot.errors import AOTDataError
from tests.data.families import FAMILIES, Family, prepare_with, tokenizer_of

SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "Red or blue?"}
ANSWER = {"role": "assistant", "content": "Blue, as ever.\n\nAlways."}
PADDED = {"role": "assistant", "content": "\n\n  Blue, with space around.  \n"}
AGAIN = {"role": "user", "content": "  Sure?\n"}
THOUGHT = {**ANSWER, "reasoning_content": "Blue is best."}
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {
            "id": "abcdefghi",
            "type": "function",
            "function": {"name": "weather", "arguments": {"city": "Paris", "days": 2}},
        }
    ],
}
RESULT = {"role": "tool", "content": "Sunny.", "tool_call_id": "abcdefghi", "name": "weather"}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather of a city.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
                "required": ["city"],
            },
        },
    }
]

# prompt, completion, tools
PLAIN = {
    "one turn": ([USER], ANSWER, None),
    "space around": ([USER], PADDED, None),
    "system": ([SYSTEM, USER], ANSWER, None),
    "several turns": ([SYSTEM, USER, ANSWER, AGAIN], ANSWER, None),
}
WITH_TOOLS = {
    "a tool call": ([USER], CALL, TOOLS),
    "an answer after a tool call": ([SYSTEM, USER, CALL, RESULT], ANSWER, TOOLS),
    "a turn after a tool call": ([USER, CALL, RESULT, ANSWER, AGAIN], CALL, TOOLS),
}
THINKING = {
    "thinking": ([USER], THOUGHT, None),
    "several turns of thinking": ([SYSTEM, USER, THOUGHT, AGAIN], THOUGHT, None),
}


# What a template cannot render so that a prompt is a prefix of its whole conversation.
EXCEPT = {
    # the system message belongs to the last user message, and goes where an answer follows
    "mistral_v3_tekken": {"system", "several turns", "an answer after a tool call"},
}


def conversations(family) -> dict:
    found = {**PLAIN, **(WITH_TOOLS if family.tools else {}), **(THINKING if family.thinking else {})}
    return {name: case for name, case in found.items() if name not in EXCEPT.get(family.template, ())}


def oracle(family, messages: list, **kwargs) -> list[int]:
    """Tokens by the tokenizer itself; templates that fail on null content get an empty text."""
    if family.needs_text:
        messages = [{**m, "content": m["content"] or ""} for m in messages]
    return tokenizer_of(family).apply_chat_template(messages, tokenize=True, return_dict=False, **kwargs)


CASES = [(family, name) for family in FAMILIES.values() for name in conversations(family)]


@pytest.mark.parametrize(("family", "name"), CASES, ids=lambda case: getattr(case, "template", case))
def test_tokens_are_the_templates(family, name):
    prompt, completion, tools = conversations(family)[name]
    tokenizer = tokenizer_of(family)
    whole = oracle(family, [*prompt, completion], tools=tools)
    before = oracle(family, prompt, tools=tools, add_generation_prompt=True)

    example = Example(prompt, ([completion],), True, tools)
    text = Renderer(tokenizer, tokenizer.chat_template, {}).text(example)
    ((found, (answer,)),) = tokenize(tokenizer, [text])

    assert found + answer == whole
    assert whole[: len(found)] == found
    # the prompt's own tokens, but for the last: the empty thought of qwen3, a line's end that is merged
    assert before[: len(found)] == found
    assert len(before) - len(found) <= (1 if name in {"space around", *THINKING} else 0)
    assert completion["content"] is None or completion["content"].split()[0] in tokenizer.decode(answer)


@pytest.fixture
def prepare(load, base_config, tmp_path):
    """The training set of rows, in their order, as axolotl's commands load it with a family's tokenizer."""

    def prepare(family, rows: list[dict], rl: str, keys: dict | None = None, **options):
        config = {**base_config, "rl": rl, "chat_template": family.template}
        return prepare_with(tokenizer_of(family), rows, {**config, **(keys or {})}, load, tmp_path, **options)

    return prepare


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.template)
def test_conversations_survive_a_file_and_axolotls_pipeline(prepare, family):
    cases = conversations(family)
    rows = [
        {"messages": prompt, "completion": completion, "tools": tools, "label": i % 2 == 0}
        for i, (prompt, completion, tools) in enumerate(cases.values())
    ]
    prepared = prepare(family, rows, "aot_unpaired", type="chat_template")
    assert len(prepared) == len(cases)
    for row, (prompt, completion, tools) in zip(prepared, cases.values(), strict=True):
        whole = oracle(family, [*prompt, completion], tools=tools)
        assert row["prompt_ids"] + row["completion_ids"] == whole


@pytest.mark.parametrize("family", [FAMILIES["llama3"], FAMILIES["qwen_25"]], ids=lambda f: f.template)
def test_pairs_are_the_templates_tokens_in_both_kinds_of_training(prepare, family):
    worse = {"role": "assistant", "content": "Red, now and then."}
    cases = conversations(family)
    rows = [
        {"thread": prompt, "good": completion, "poor": worse, "functions": tools, "w": float(i + 1)}
        for i, (prompt, completion, tools) in enumerate(cases.values())
    ]
    names = {"field_messages": "thread", "field_chosen": "good", "field_rejected": "poor"}
    options = {**names, "field_tools": "functions", "field_weight": "w"}
    pairs = prepare(family, rows, "aot", type="pairs", **options)
    answers = prepare(family, rows, "aot_unpaired", type="pairs", **options)
    assert (len(pairs), len(answers)) == (len(cases), 2 * len(cases))
    for i, (prompt, completion, tools) in enumerate(cases.values()):
        for name, message, answer in (
            ("chosen", completion, answers[2 * i]),
            ("rejected", worse, answers[2 * i + 1]),
        ):
            whole = oracle(family, [*prompt, message], tools=tools)
            assert pairs[i]["prompt_ids"] + pairs[i][f"{name}_ids"] == whole
            assert answer["prompt_ids"] + answer["completion_ids"] == whole
            assert answer["label"] is (name == "chosen")
            assert pairs[i]["weight"] == answer["weight"] == i + 1
    assert pairs[:] == prepare(family, rows, "aot", type="chat_template", **options)[:]


def test_both_completions_of_a_pair_follow_the_same_tokens():
    tokenizer = tokenizer_of(FAMILIES["chatml"])
    example = Example([USER], ([ANSWER], [PADDED]), True)
    text = Renderer(tokenizer, tokenizer.chat_template, {}).text(example)
    ((prompt, completions),) = tokenize(tokenizer, [text])
    for completion, message in zip(completions, (ANSWER, PADDED), strict=True):
        whole = oracle(FAMILIES["chatml"], [USER, message])
        assert prompt + completion == whole


def test_template_kwargs_reach_the_template():
    tokenizer = tokenizer_of(FAMILIES["qwen3"])
    renderer = Renderer(tokenizer, tokenizer.chat_template, {"enable_thinking": False})
    assert renderer.text(Example([USER], ([ANSWER],), True)).prompt.endswith("<think>\n\n</think>\n\n")


# --- Text ------------------------------------------------------------------------------------------


def plain(tokenizer, prompt: str, *completions: str) -> tuple[list[int], list[list[int]]]:
    text = Renderer(tokenizer, None, {}).text(Example(prompt, completions, True))
    ((found, answers),) = tokenize(tokenizer, [text])
    return found, answers


def test_text_has_the_beginning_and_the_end_once():
    tokenizer = tokenizer_of(FAMILIES["chatml"])
    for prompt, completion in (("Red?", " Blue."), ("<s>Red?", " Blue."), ("Red?", " Blue.</s>")):
        found, (answer,) = plain(tokenizer, prompt, completion)
        assert tokenizer.decode(found) == "<s>Red?"
        assert tokenizer.decode(answer) == " Blue.</s>"


@pytest.mark.parametrize(
    ("prompt", "completion"),
    [("Red? ", "blue dog"), ("Red?\n", "\nblue"), ("Red?", "   \n blue"), ("cat", "s and dogs"), ("ü", "é")],
)
def test_a_token_over_the_boundary_belongs_to_the_completion(prompt, completion):
    tokenizer = tokenizer_of(FAMILIES["chatml"])
    whole = tokenizer(prompt + completion + "</s>")["input_ids"]
    found, (answer,) = plain(tokenizer, prompt, completion)
    assert found + answer == whole
    # the most tokens that stay within the prompt, by decoding ever more of them
    lengths = [len(tokenizer.decode(whole[1:n])) for n in range(1, len(whole) + 1)]
    assert len(found) == max(n for n, length in enumerate(lengths, start=1) if length <= len(prompt))


def test_a_slow_tokenizer_splits_at_the_same_place(monkeypatch):
    tokenizer = tokenizer_of(FAMILIES["chatml"])
    fast = plain(tokenizer, "Red?", " blue dog", " one")
    monkeypatch.setattr(type(tokenizer), "is_fast", False)
    assert plain(tokenizer, "Red?", " blue dog", " one") == fast


# --- What cannot be rendered -----------------------------------------------------------------------


def refused(template: str, example: Example, message: str, tokenizer=None) -> None:
    tokenizer = tokenizer or tokenizer_of(FAMILIES["chatml"])
    with pytest.raises(BadRow, match=message):
        Renderer(tokenizer, template, {}).text(example)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
            "{% if add_generation_prompt %}<go>{% endif %}",
            r"equal for 18 characters; then the prompt goes on '\[user\]Red or blue\?<go>' and the whole "
            r"'\[user\]Red or blue\?\[assistant\]Blue, as ever",
        ),
        (
            "{{ messages|length }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}",
            r"equal for 0 characters; then the prompt goes on '1\[user\].*and the whole '2\[user\]",
        ),
    ],
)
def test_a_prompt_that_is_no_prefix_of_the_whole_shows_both(template, message):
    refused(template, Example([USER], ([ANSWER],), True), message)


def test_an_answer_that_begins_in_another_way_than_it_is_asked_for(caplog):
    tokenizer = tokenizer_of(FAMILIES["qwen3"])
    renderer = Renderer(tokenizer, tokenizer.chat_template, {})
    text = renderer.text(Example([USER], ([THOUGHT], [ANSWER]), True))
    assert text.prompt.endswith("<|im_start|>assistant\n<think>\n")
    assert text.wholes[0][len(text.prompt) :].startswith("Blue is best.\n</think>\n\nBlue")
    assert text.wholes[1][len(text.prompt) :].startswith("\n</think>\n\nBlue")
    renderer.text(Example([USER], ([THOUGHT],), True))
    assert [r.message.count("The chat template begins the assistant's turn") for r in caplog.records] == [1]


def test_what_a_template_would_leave_out():
    chatml = get_chat_template("chatml")
    left_out = "the chat template leaves out the `{}` of a message of `{}`"
    refused(chatml, Example([USER], ([CALL],), True), left_out.format("tool_calls", "assistant"))
    refused(
        chatml, Example([USER, CALL, RESULT], ([ANSWER],), True), left_out.format("tool_calls", "assistant")
    )
    refused(chatml, Example([USER], ([THOUGHT],), True), left_out.format("reasoning_content", "assistant"))
    refused(
        chatml, Example([USER], ([ANSWER],), True, TOOLS), "the chat template leaves out the tool 'weather'"
    )
    # templates that mention what they do not always render
    mistral = get_chat_template("mistral_v3_tekken")
    talking = {**CALL, "content": "Let me look."}
    refused(mistral, Example([USER], ([talking],), True, TOOLS), left_out.format("content", "assistant"))
    silent = "{% for m in messages if m.role != 'tool' %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    refused(silent, Example([USER, RESULT], ([ANSWER],), True), left_out.format("content", "tool"))


@pytest.mark.parametrize("answer", ["<b>bold</b>", "<tool>", "plain", "\n\nplain"])
def test_an_answer_is_not_split_inside_its_own_text(answer):
    template = (
        "{% for m in messages %}<{{ m.role }}>\n{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>\n<think>\n{% endif %}"
    )
    example = Example([USER], ([{"role": "assistant", "content": answer}],), True)
    text = Renderer(tokenizer_of(FAMILIES["chatml"]), template, {}).text(example)
    assert text.prompt == "<user>\nRed or blue?<assistant>\n"
    assert text.wholes == [text.prompt + answer]


def test_messages_that_a_template_refuses():
    mistral = get_chat_template("mistral_v3_tekken")
    example = Example([USER, USER], ([ANSWER],), True)
    refused(mistral, example, "the chat template fails for messages of user, user: .*alternate")


def test_an_empty_prompt():
    refused(get_chat_template("chatml"), Example([], ([ANSWER],), True), "the prompt is empty")


def test_texts_are_tokenized_in_order():
    tokenizer = tokenizer_of(FAMILIES["chatml"])
    texts = [
        Text(f"{word}?", [f"{word}? {word}"], special) for word, special in (("red", True), ("blue", False))
    ]
    (first, _), (second, _) = tokenize(tokenizer, texts)
    assert (tokenizer.decode(first), tokenizer.decode(second)) == ("<s>red?", "blue?")


# --- What a template leaves out, and what it only moves ------------------------------------------

SUM = {"role": "user", "content": "2 + 2?"}
SEARCH = [
    {
        "type": "function",
        "function": {
            "name": "search",
            "description": "Looks it up.",
            "parameters": {"type": "object", "properties": {"place": {"type": "string"}}},
        },
    }
]
TEMPLATE = (
    "{% for tool in tools or [] %}TOOL{% endfor %}{% for m in messages %}<{{ m.role }}>CONTENT"
    "{% for call in m.tool_calls or [] %}{% set call = call.function %}CALL{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def jinja(content="{{ m.content }}", tool="{{ tool | tojson }}", call="{{ call | tojson }}") -> str:
    """A chat template that writes contents, tools and tool calls in a way of its own."""
    return TEMPLATE.replace("CONTENT", content).replace("TOOL", tool).replace("CALL", call)


def calling(**arguments) -> dict:
    function = {"name": "search", "arguments": arguments}
    return {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}


FIRST_LINE, LAST_LINE = "{{ m.content.split('\n')[0] }}", "{{ m.content.split('\n') | last }}"
NO_ARGUMENTS = "{{ call.name }}"
NO_TRUTH = NO_ARGUMENTS + (
    "{% for k, v in call.arguments | dictsort %}{{ k }}={{ v if v is not boolean }}{% endfor %}"
)
POSED = {"role": "user", "content": "2 + 2? Add two and two, search a place, looks it up: 2, True, false"}
# what the rows' prompt, chosen answer and tools are, the template, and what the error says is left out
LEFT_OUT = {
    "thought": (
        SUM,
        "<think>\ntwo and two\n</think>\n\n4",
        None,
        "deepseek_v3",
        "`content` .*: 'two and two'",
    ),
    "thought said": (
        POSED,
        "<think>two and two</think>4",
        None,
        "deepseek_v3",
        "`content` .*: 'two and two'",
    ),
    "thought shown never": (
        SUM,
        "<think>two and two</think>4",
        None,
        "exaone4",
        "`content` .*`chat_template_kwargs`",
    ),
    "channel": (SUM, "<|channel>thought\ntwo and two<channel|>4", None, "gemma4", "`content` .*two and two'"),
    "property": (
        SUM,
        {"content": "4", "thinking": "two and two"},
        None,
        "qwen3",
        "`thinking` .*: 'two and two'",
    ),
    "first line": (POSED, "It is:\n2", None, jinja(FIRST_LINE), "`content` of a message of `assistant` .*2'"),
    "last line": (SUM, "It is:\n4", None, jinja(LAST_LINE), r"`content` .*: 'It is:\\n4'"),
    "cut": (SUM, "It is four, as ever.", None, jinja("{{ m.content[:12] }}"), "`content` .*: 'as ever.'"),
    "tags": (SUM, "It <b>is</b> 4.", None, jinja("{{ m.content | striptags }}"), "`content` .*: 'It <b>is"),
    "a tag": (
        SUM,
        "It <b>is</b> 4.",
        None,
        jinja("{{ m.content | replace('<b>', '') }}"),
        r"`content` of a message of `assistant` \(message 2 of 2\): '<b>'",
    ),
    "a turn": (
        [SYSTEM, SUM, {"role": "assistant", "content": "It is 2."}, POSED],
        "4",
        None,
        jinja("{% if m.role != 'assistant' or loop.last %}{{ m.content }}{% endif %}"),
        r"`content` of a message of `assistant` \(message 3 of 4\): 'It is 2.'",
    ),
    "system": (
        [SYSTEM, {"role": "user", "content": "Be brief. 2 + 2?"}],
        "4",
        None,
        jinja("{{ m.content if m.role != 'system' }}"),
        r"`content` of a message of `system` .*: 'Be brief.'; .*`drop_system_message: true`",
    ),
    "tools": (POSED, "4", SEARCH, "chatml", "the tool 'search'"),
    "description": (
        POSED,
        "4",
        SEARCH,
        jinja(tool="{{ tool.function.name }}"),
        "description of the tool 'search'",
    ),
    "parameter": (
        POSED,
        "4",
        SEARCH,
        jinja(tool="{{ tool.function.name }}{{ tool.function.description }}"),
        "the parameter 'place' of the tool 'search'",
    ),
    "call": (POSED, calling(place="x"), None, "chatml", "`tool_calls` .*, the tool 'search'"),
    "argument": (
        POSED,
        calling(place=2),
        None,
        jinja(call=NO_ARGUMENTS),
        "`tool_calls` .*the argument `place` of 'search'",
    ),
    "value": (
        POSED,
        calling(place=True),
        None,
        jinja(call=NO_TRUTH),
        "`tool_calls` .*the argument `place` of 'search': 'True'",
    ),
}


def pair(prompt, chosen, tools) -> dict:
    """A row of a pair whose rejected answer no template can spoil."""
    chosen = chosen if isinstance(chosen, dict) else {"content": chosen}
    prompt = prompt if isinstance(prompt, list) else [prompt]
    row = {"messages": prompt, "chosen": {"role": "assistant", **chosen}}
    return {
        **row,
        "rejected": {"role": "assistant", "content": "Five."},
        **({"tools": tools} if tools else {}),
    }


def entry_of(template: str) -> dict:
    if "{" in template:
        return {"type": "chat_template", "chat_template": "jinja", "chat_template_jinja": template}
    return {"type": "chat_template", "chat_template": template}


@pytest.mark.parametrize(
    ("prompt", "chosen", "tools", "template", "message"), LEFT_OUT.values(), ids=LEFT_OUT
)
def test_what_is_left_out_is_shown(prepare, prompt, chosen, tools, template, message):
    rows = [pair(SUM, "4", None), pair(prompt, chosen, tools)]
    with pytest.raises(AOTDataError, match=f"row 2: the chat template leaves out (the )?{message}"):
        prepare(FAMILIES["chatml"], rows, "aot", **entry_of(template))


SWITCHED = {"chat_template_kwargs": {"skip_think": False}}
NESTED = {"Zed": 'say "it\'s"', "deep": {"a": [1, "two\n", None, False]}, "n": 2, "x": 2.5, "b": True}
IF_JSON = "{% if m.content.startswith('{') %}JSON {% endif %}{{ m.content }}"
JSON_ONLY = (
    "{% if m.role == 'assistant' and not m.content.startswith('{') and m.content != 'Five.' %}"
    "{{ raise_exception('no JSON') }}{% endif %}{{ m.content }}"
)
EARLIER = {"role": "assistant", "content": "<think>\ntwo and two\n</think>\n\n4"}
EARLIER_PROPERTY = {"role": "assistant", "content": "4", "reasoning_content": "two and two"}
SORTED = (
    "{% for k, v in call.arguments | dictsort %}{{ k }}={{ v if v is string else v | tojson }}{% endfor %}"
)
# the rows' prompt, chosen answer and tools, the template, and keys of the YAML
MOVED = {
    "thought": (SUM, "<think>two and two</think>4", None, "qwen3", {}),
    "thought, wide": (SUM, "\n<think>\n\n\n two and\n\ntwo\n</think>   \n\n\n4\n", None, "qwen3_5", {}),
    "thought, switched on": (SUM, "<think>\ntwo and two</think>4", None, "exaone4", SWITCHED),
    "thought, twice": (
        SUM,
        {"content": "4", "reasoning": "two", "reasoning_content": "two"},
        None,
        "qwen3",
        {},
    ),
    "earlier thought": ([SUM, EARLIER, POSED], "<think>one</think>4", None, "qwen3", {}),
    "earlier property": ([SUM, EARLIER_PROPERTY, POSED], "4", None, "chatml", {}),
    "space": ([{"role": "user", "content": "\n 2 + 2? \n"}], "\n\n 4 \n", None, "llama3", {}),
    "nothing cut": (SUM, "44", None, jinja("{{ m.content[:6] }}"), {}),
    "tags": (SUM, "a <b> c[0] </b> <|im_end|> %s [INST]\n {% raw %}", None, "chatml", {}),
    "system last": (
        [SYSTEM, SUM],
        "4",
        None,
        jinja("{{ m.content if m.role != 'system' else '' }}").replace(
            "{% for m", "{{ messages[0].content if messages[0].role == 'system' }}{% for m"
        ),
        {},
    ),
    "JSON": (SUM, '{"a": 4}', None, jinja(IF_JSON), {}),
    "nothing but JSON": (SUM, '{"a": 4}', None, jinja(JSON_ONLY), {}),
    "tool": (SUM, "4", SEARCH, jinja(tool="{{ tool.function }}"), {}),
    "tool, quoted": (SUM, "4", [{**SEARCH[0]["function"], "description": 'It\'s "it"\n'}], "qwen_25", {}),
    "like marks": (
        {"role": "user", "content": 'aotq000001"z 73109000000 \0 %s'},
        'aotq000000"z',
        [{**SEARCH[0]["function"], "parameters": {"description": 'aotq000009"z \0', "properties": {}}}],
        "qwen_25",
        {},
    ),
    "call, Python": (SUM, calling(**NESTED), None, jinja(call="{{ call }}"), {}),
    "call, twice JSON": (SUM, calling(**NESTED), None, jinja(call="{{ call | tojson | tojson }}"), {}),
    "call, sorted": (SUM, calling(**NESTED), None, jinja(call="{{ call.name }}" + SORTED), {}),
    "result": ([SUM, CALL, {**RESULT, "content": 'It\'s "fine".\n'}], "4", None, "llama4", {}),
}


@pytest.mark.parametrize(("prompt", "chosen", "tools", "template", "keys"), MOVED.values(), ids=MOVED)
def test_what_is_moved_is_not_left_out(prepare, prompt, chosen, tools, template, keys):
    row = pair(prompt, chosen, tools)
    (found,) = prepare(FAMILIES["chatml"], [row], "aot", keys, **entry_of(template))
    jinja = template if "{" in template else get_chat_template(template)
    kwargs = {**keys.get("chat_template_kwargs", {}), "chat_template": jinja, "tools": tools}
    if template == "llama4":  # fails on null content
        row["messages"] = [{**m, "content": m["content"] or ""} for m in row["messages"]]
    tokenizer = tokenizer_of(FAMILIES["chatml"])
    for name in ("chosen", "rejected"):
        messages = [*row["messages"], row[name]]
        ids = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, **kwargs)
        assert found["prompt_ids"] + found[f"{name}_ids"] == ids


def test_the_mapping_that_an_error_names_keeps_the_thought(prepare):
    row = pair(SUM, {"content": "4", "thinking": "two and two"}, None)
    family, mapping = Family("qwen3", []), {"reasoning_content": "thinking"}
    with pytest.raises(AOTDataError, match=r"mappings: \{reasoning_content: thinking\}"):
        prepare(family, [row], "aot", type="chat_template")
    (found,) = prepare(family, [row], "aot", type="chat_template", message_property_mappings=mapping)
    assert "two and two" in found["chosen"]


def test_rows_of_one_shape_are_rendered_no_more_often(monkeypatch):
    tokenizer = tokenizer_of(FAMILIES["llama3"])
    counted = []
    apply = type(tokenizer).apply_chat_template
    monkeypatch.setattr(
        type(tokenizer), "apply_chat_template", lambda *a, **k: counted.append(1) or apply(*a, **k)
    )
    renderer = Renderer(tokenizer, tokenizer.chat_template, {})
    for i in range(50):
        prompt = [SYSTEM, {"role": "user", "content": f" What is {i} <b>[0]</b>?"}]
        renderer.text(Example(prompt, ([{"role": "assistant", "content": f"\n{i} %s\n"}],), True))
    assert len(counted) == 2 * 50 + 2
