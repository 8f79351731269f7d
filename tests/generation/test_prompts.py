"""Prompts to be answered are those of training, text and tokens: rows of every type, and prompts alone."""

import json

import pytest

from axolotl_aot import config as aot_config
from axolotl_aot.errors import AOTDataError
from tests.marks import slow_except
from tests.tiny import write_jsonl

SYSTEM = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "red cat?"}]
TURNS = [
    {"role": "user", "content": "red?"},
    {"role": "assistant", "content": "cat"},
    {"role": "user", "content": "blue?"},
]
ASKED = [{"role": "user", "content": "red cat?"}]
ANSWER = {"role": "assistant", "content": "dog"}
OTHER = {"role": "assistant", "content": "bird"}
TOOLS = [{"name": "find", "parameters": {"type": "object", "properties": {"what": {"type": "string"}}}}]
WITH_TOOLS = (
    "{% if tools %}<|im_start|>tools\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PAIR = {"chosen": "dog", "rejected": "bird"}
HH = "\n\nHuman: red?\n\nAssistant: cat\n\nHuman: blue?\n\nAssistant:"
FORMATS = {"field_prompt": "q", "prompt_format": "Q: {prompt}\nA:", "field_system": "s"}

# name: rl, options of the entry, a row, and the same prompt without answers (None: rows of this kind have it
# in their answers)
CASES = {
    "text": ("aot", {"type": "chat_template"}, {"prompt": "red cat?", **PAIR}, {"prompt": "red cat?"}),
    "messages": ("aot", {"type": "chat_template"}, {"messages": TURNS, **PAIR}, {"messages": TURNS}),
    "system": ("aot", {"type": "pairs"}, {"messages": SYSTEM, **PAIR}, {"messages": SYSTEM}),
    "system column": (
        "aot_unpaired",
        {"type": "pairs"},
        {"prompt": "red?", "system": "be brief", **PAIR},
        {"prompt": "red?", "system": "be brief"},
    ),
    "system dropped": (
        "aot",
        {"type": "chat_template", "drop_system_message": True},
        {"messages": SYSTEM, **PAIR},
        {"messages": SYSTEM},
    ),
    "tools": (
        "aot",
        {"type": "chat_template", "chat_template": "jinja", "chat_template_jinja": WITH_TOOLS},
        {"messages": ASKED, "tools": TOOLS, **PAIR},
        {"messages": ASKED, "tools": TOOLS},
    ),
    "own names": (
        "aot",
        {
            "type": "chat_template",
            "field_messages": "talk",
            "message_property_mappings": {"role": "who", "content": "says"},
            "roles": {"user": ["customer"]},
        },
        {"talk": [{"who": "customer", "says": "red?"}], "chosen": "dog", "rejected": "bird"},
        {"talk": [{"who": "customer", "says": "red?"}]},
    ),
    "conversations": (
        "aot",
        {"type": "chat_template"},
        {"prompt": "red?", "chosen": [*TURNS, ANSWER], "rejected": [*TURNS, OTHER]},
        {"messages": TURNS},
    ),
    "last turn": (
        "aot_unpaired",
        {"type": "chat_template"},
        {"messages": [*TURNS, ANSWER], "label": True},
        {"messages": TURNS},
    ),
    "last turn, one label": (
        "aot_unpaired",
        {"type": "chat_template", "label": True},
        {"messages": [*SYSTEM, ANSWER]},
        {"messages": SYSTEM},
    ),
    "transcripts": ("aot", {"type": "pairs"}, {"chosen": f"{HH} dog", "rejected": f"{HH} bird"}, None),
    "scored": (
        "aot_unpaired",
        {"type": "scored", "positive_above": 0.5, "negative_below": 0.5},
        {"instruction": "red?", "output": "cat", "score": 0.9},
        {"instruction": "red?"},
    ),
    "ranked": (
        "aot",
        {"type": "ranked"},
        {"prompt": "red?", "completions": ["cat", "dog"], "scores": [1, 0]},
        {"prompt": "red?"},
    ),
    "ranked text": (
        "aot",
        {"type": "ranked"},
        {"text_prompt": "red?", "completions": [" cat", " dog"], "scores": [1, 0]},
        {"text_prompt": "red?"},
    ),
    "plain columns": (
        "aot",
        {},
        {"prompt": "red?", "chosen": " cat", "rejected": " dog"},
        {"prompt": "red?"},
    ),
    "a format": (
        "aot",
        {"type": {**FORMATS, "prompt_format": "S: {system} Q: {prompt}\nA:"}},
        {"q": "red?", "s": "brief", "chosen": " cat", "rejected": " dog"},
        {"q": "red?", "s": "brief"},
    ),
    "a format with a label": (
        "aot_unpaired",
        {"type": {**FORMATS, "field_completion": "a", "field_label": "ok"}},
        {"q": "red?", "a": " cat", "ok": True},
        {"q": "red?"},
    ),
    "chatml.intel": (
        "aot",
        {"type": "chatml.intel"},
        {"question": "red?", "system": "be brief", "chosen": "cat", "rejected": "dog"},
        {"question": "red?", "system": "be brief"},
    ),
    "chatml.ultra": (
        "aot",
        {"type": "chatml.ultra"},
        {"prompt": "red?", "chosen": [*ASKED, ANSWER], "rejected": [*ASKED, OTHER]},
        {"prompt": "red?"},
    ),
    "chatml.ultra with a label": (
        "aot_unpaired",
        {"type": "chatml.ultra"},
        {"prompt": "red?", "completion": "cat", "label": True},
        {"prompt": "red?"},
    ),
    "chatml.argilla_chat": (
        "aot",
        {"type": "chatml.argilla_chat"},
        {"chosen": [*ASKED, ANSWER], "rejected": [*ASKED, OTHER]},
        None,
    ),
}

QUICK = ("tools", "conversations", "last turn", "ranked text", "a format with a label", "chatml.ultra")


@pytest.fixture
def read(load, base_config, tmp_path):
    """`read_prompts` with the first entry of a YAML whose own data set does not exist."""
    from axolotl.loaders import load_tokenizer

    from axolotl_aot.data.prompts import read_prompts

    def read(rl: str, options: dict, rows: list[dict] | str, name: str = "prompts.jsonl"):
        entry = {"path": "nowhere.jsonl", **options}
        cfg = load({**base_config, "rl": rl, "datasets": [entry], "sequence_len": 512})
        path = tmp_path / name
        if isinstance(rows, str):
            path.write_text(rows)
        else:
            write_jsonl(path, rows)
        return read_prompts(str(path), entry, aot_config.active_rl(cfg), cfg, load_tokenizer(cfg)).prompts

    return read


@pytest.fixture
def trained(load, base_config, tmp_path):
    """Text and tokens of the prompt that a trainer gets of rows with one."""
    from axolotl.common.datasets import load_preference_datasets

    def trained(rl: str, options: dict, rows: list[dict]):
        entry = {"path": str(write_jsonl(tmp_path / "rows.jsonl", rows)), **options}
        datasets = [entry]
        if rl == "aot_unpaired":  # a run needs both labels
            other = write_jsonl(tmp_path / "other.jsonl", [{"messages": [*ASKED, ANSWER]}] * 2)
            datasets += [
                {"path": str(other), "type": "chat_template", "label": label} for label in (True, False)
            ]
        settings = {"sequence_len": 512, "shuffle_merged_datasets": False, "dataset_prepared_path": None}
        cfg = load({**base_config, **settings, "rl": rl, "datasets": datasets})
        found = load_preference_datasets(cfg=cfg).train_dataset
        prompts = list(zip(found["prompt"], found["prompt_ids"], strict=True))
        return [pair for i, pair in enumerate(prompts) if pair not in prompts[:i]][:1]

    return trained


@pytest.mark.parametrize("name", slow_except(QUICK, CASES))
def test_prompts_are_those_of_training(read, trained, name):
    rl, options, row, alone = CASES[name]
    ((text, ids),) = trained(rl, options, [row])
    for rows in [[row, row]] if alone is None else [[row, row], [alone]]:
        (prompt,) = read(rl, options, rows)
        assert (prompt.text, prompt.ids) == (text, ids)
        assert prompt.row == 1


def test_each_prompt_counts_once_and_rows_keep_their_numbers(read):
    rows = [{"prompt": text, "chosen": f"{i}", "rejected": "x"} for i, text in enumerate("abaabca")]
    found = read("aot", {"type": "pairs"}, rows)
    assert [(prompt.row, prompt.messages[0]["content"]) for prompt in found[:2]] == [(1, "a"), (2, "b")]
    assert [prompt.row for prompt in found] == [1, 2, 6]


@pytest.mark.parametrize(
    ("options", "before", "after"),
    [
        ({"type": "chat_template"}, "", "<|im_end|>\n"),
        ({}, "", "</s>"),
        ({"type": {"field_prompt": "prompt", "chosen_format": " {chosen} END"}}, " ", " END</s>"),
        ({"type": "chatml.ultra"}, "", "<|im_end|></s>"),
    ],
)
def test_what_stands_around_an_answer(read, options, before, after):
    (prompt,) = read("aot", options, [{"prompt": "red?"}])
    assert (prompt.before, prompt.after) == (before, after)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("prompts.json", json.dumps([{"prompt": "red?"}, {"prompt": "blue?"}])),
        ("prompts.csv", "prompt\nred?\nblue?\n"),
        ("prompts.tsv", "prompt\tother\nred?\t1\nblue?\t2\n"),
    ],
)
def test_other_files(read, name, content):
    found = read("aot", {"type": "chat_template"}, content, name)
    assert [prompt.messages[0]["content"] for prompt in found] == ["red?", "blue?"]


CHAT = {"type": "chat_template"}
BAD = {
    "empty file": (CHAT, "", "the file is empty"),
    "no rows": (CHAT, "[]", "prompts"),
    "not JSON": (CHAT, "{prompt: red", "prompts"),
    "no column": (CHAT, [{"text": "red?"}], r"no column holds prompts \(messages, .*Columns: text"),
    "two columns": (CHAT, [{"instruction": "red?", "input": "x"}], "both `instruction` and `input`"),
    "null": (CHAT, [{"prompt": "red?"}, {"prompt": None}], "row 2: field `prompt` is missing or null"),
    "blank": (CHAT, [{"prompt": "red?"}, {"prompt": " \n"}], "row 2: field `prompt`: the prompt is empty"),
    "number": (CHAT, [{"prompt": 7}], "row 1: field `prompt`: expected text, found 7"),
    "no messages": (CHAT, [{"messages": []}], "row 1: .*the prompt is empty"),
    "only an answer": (CHAT, [{"messages": [ANSWER]}], "row 1: .*prompt is empty"),
    "a role": (CHAT, [{"messages": [{"role": "judge", "content": "x"}]}], "row 1: .*role 'judge' is none of"),
    "no content": (CHAT, [{"messages": [{"role": "user"}]}], "row 1: .*content is missing or null"),
    "parts": (
        CHAT,
        [{"messages": [{"role": "user", "content": [{"type": "image"}]}]}],
        "row 1: .*parts that are not text",
    ),
    "tools": (CHAT, [{"prompt": "red?", "tools": "{"}], "row 1: field `tools`: not valid JSON"),
    "tools left out": (
        CHAT,
        [{"prompt": "red?", "tools": json.dumps(TOOLS)}],
        "row 1: .*template",
    ),
    "two systems": (CHAT, [{"messages": SYSTEM, "system": "be long"}], "row 1: .*system message of its own"),
    "a type's column": ({"type": "chatml.intel"}, [{"prompt": "red?"}], "row 1: .*chatml.intel.*question"),
    "a type's text": ({}, [{"prompt": ["red?"]}], "row 1: field `prompt`: expected text"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_prompts_are_named(read, name):
    options, rows, message = BAD[name]
    with pytest.raises(AOTDataError, match=message) as caught:
        read("aot", options, rows)
    assert "--prompts " in str(caught.value)


def test_bad_prompts_may_be_dropped(read):
    rows = [{"prompt": "red?"}, {"prompt": ""}, {"prompt": "blue?"}]
    found = read("aot", {**CHAT, "on_bad_rows": "drop"}, rows)
    assert [prompt.row for prompt in found] == [1, 3]
