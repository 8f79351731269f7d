"""Rows are judged as they stand in the file: used as they are meant, or refused by number and field."""

import re
import shutil

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from tests.data.entries import counts_in

CHAT = {"type": "chat_template"}
USER = {"role": "user", "content": "2 + 2?"}
HELLO = {"role": "assistant", "content": "Hello!"}


def answer(text: str) -> dict:
    return {"role": "assistant", "content": text}


def texts(dataset, column: str) -> list[str]:
    """A column's texts without what a template or type puts after them."""
    return [text.removesuffix("</s>").strip().removesuffix("<|im_end|>") for text in dataset[column]]


# --- Axolotl's types -------------------------------------------------------------------------------

DPO = {"chosen": "4", "rejected": "5"}
# type, how a good row looks, and the bad ones: field, value, and what it is refused for
MISSING, EMPTY, NOT_TEXT = (
    "field `{}` is missing or null",
    "field `{}` is empty",
    "field `{}`: expected text, found",
)
FORMATTED = {
    "chatml.intel": (
        "aot",
        "chatml.intel",
        {"question": "2 + 2?", **DPO},
        [
            ("question", None, MISSING),
            ("question", " ", EMPTY),
            ("chosen", None, MISSING),
            ("chosen", "", EMPTY),
            ("rejected", "\n\t", EMPTY),
        ],
    ),
    "llama3.icr": (
        "aot",
        "llama3.icr",
        {"input": "2 + 2?", "system": "be kind", **DPO},
        [("input", None, MISSING), ("rejected", "", EMPTY)],
    ),
    "numbers beside text": (
        "aot",
        "chatml.prompt_pairs",
        {"prompt": "2 + 2?", **DPO, "unrelated": None},
        [("chosen", 4, NOT_TEXT), ("prompt", 2.5, NOT_TEXT), ("rejected", True, NOT_TEXT)],
    ),
    "kto": (
        "aot_unpaired",
        "chatml.ultra",
        {"prompt": "2 + 2?", "completion": "4", "label": True},
        [("prompt", None, MISSING), ("completion", None, MISSING), ("completion", "  ", EMPTY)],
    ),
    "conversations": (
        "aot",
        "chatml.argilla_chat",
        {"chosen": [USER, answer("4")], "rejected": [USER, answer("5")]},
        [
            ("chosen", [USER, answer("")], "field `{}[1].content` is empty"),
            ("rejected", [USER, answer(None)], "field `{}[1].content` is missing or null"),
        ],
    ),
    "user defined": (
        "aot_unpaired",
        {"field_prompt": "q", "field_completion": "a", "field_label": "ok", "prompt_format": "Q: {prompt}"},
        {"q": "2 + 2?", "a": "4", "ok": True},
        [("q", None, MISSING), ("a", "", EMPTY), ("a", None, MISSING)],
    ),
}


@pytest.mark.parametrize("name", FORMATTED)
def test_axolotls_types_do_not_write_what_is_no_text(prepare_rows, name):
    rl, kind, good, bad = FORMATTED[name]
    label = next((key for key in ("label", "ok") if key in good), None)
    first, last = ({**good, label: value} if label else good for value in (True, False))
    rows = [first, *({**good, field: value} for field, value, _ in bad), last]
    assert len(prepare_rows(rl, rows, type=kind, on_bad_rows="drop")) == 2
    counts = counts_in(prepare_rows.log())
    assert (counts["rows"], counts["bad"], counts["used"]) == (len(rows), len(bad), 2)
    for i, (field, _, message) in enumerate(bad, start=1):
        with pytest.raises(ValueError, match=r"row 2: " + re.escape(message.format(field))):
            prepare_rows(rl, [first, *rows[i:]], type=kind)


def test_a_blank_system_message_is_none(prepare_rows):
    rows = [{"question": "2 + 2?", "system": system, **DPO} for system in ("", None, "be kind")]
    found = prepare_rows("aot", rows, type="chatml.intel")
    assert ["system" in prompt for prompt in found["prompt"]] == [False, False, True]


def test_numbers_that_a_type_computes_with_are_no_text(prepare_rows, tmp_path, monkeypatch):
    (tmp_path / "of_mine.py").write_text(
        "def scored(cfg, **kwargs):\n"
        "    def transform(row):\n"
        "        return {'prompt': row['q'], 'completion': row['a'], 'label': row['score'] > 3}\n"
        "    return transform\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    rows = [
        {"q": "2 + 2?", "a": "4", "score": 5, "note": None},
        {"q": "2 + 2?", "a": "5", "score": 1, "note": None},
    ]
    assert prepare_rows("aot_unpaired", rows, type="of_mine.scored")["label"][:] == [True, False]
    with pytest.raises(ValueError, match="row 2: field `completion` is missing or null"):
        prepare_rows("aot_unpaired", [rows[0], {**rows[1], "a": None}], type="of_mine.scored")


# --- Conversations ---------------------------------------------------------------------------------


@pytest.mark.parametrize("leading", [[], [{"role": "system", "content": "be kind"}]])
@pytest.mark.parametrize("more", [[], [answer("4?"), {"role": "user", "content": "Sure?"}]])
def test_a_greeting_before_the_first_question(prepare_rows, leading, more):
    before = [*leading, HELLO, USER, *more]
    rows = [{"messages": [*before, answer(text)], "label": text == "4"} for text in ("4", "5")]
    found = prepare_rows("aot_unpaired", rows, **CHAT)
    assert texts(found, "completion") == ["4", "5"]
    assert "assistant\nHello!<|im_end|>\n<|im_start|>user\n2 + 2?" in found["prompt"][0]
    pairs = [{"chosen": [*before, answer("4")], "rejected": [*before, answer("5")]}]
    paired = prepare_rows("aot", pairs, **CHAT)
    assert (paired["prompt"][0], texts(paired, "chosen")) == (found["prompt"][0], ["4"])
    completions = [{"prompt": "2 + 2?", "completion": r["messages"], "label": r["label"]} for r in rows]
    if not more:  # the prompt's own column is the end of the conversation before the answer
        assert prepare_rows("aot_unpaired", completions, **CHAT)["prompt"][:] == found["prompt"][:]


def test_turns_that_go_on_with_the_prompt_do_not_replace_it(prepare_rows):
    call = {"role": "assistant", "content": "Looking.", "tool_calls": None}
    row = {
        "prompt": "2 + 2?",
        "completion": [call, {"role": "tool", "content": "4"}, answer("4")],
        "label": True,
    }
    with pytest.raises(
        ValueError, match="row 1: a completion holds the assistant's messages only, not one of `tool`"
    ):
        prepare_rows("aot_unpaired", [row], **CHAT)


SYSTEM = "system\nbe kind<|im_end|>"
SYSTEMS = {
    "text": "be kind",
    "message": {"role": "system", "content": "be kind"},
    "sharegpt": {"from": "system", "value": "be kind"},
    "messages": [{"role": "system", "content": "be kind"}],
    "parts": [{"type": "text", "text": "be "}, {"type": "text", "text": "kind"}],
    "a part": {"type": "text", "text": "be kind"},
    "message of parts": {"role": "system", "content": [{"type": "text", "text": "be kind"}]},
}


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_system_message_of_any_kind(prepare_rows, name):
    found = prepare_rows("aot", [{"system": SYSTEMS[name], "prompt": "2 + 2?", **DPO}], **CHAT)
    assert SYSTEM in found["prompt"][0]
    assert "{" not in found["prompt"][0]


NO_SYSTEM = {
    "a number": (5, "expected text, found 5"),
    "true": (True, "expected text, found True"),
    "a user's message": (USER, "expected one system message, found user"),
    "two": ([SYSTEMS["message"]] * 2, "expected one system message, found system, system"),
    "something else": ({"be": "kind"}, "its content has parts that are not text"),
    "texts": (["be kind", "be brief"], "its content has parts that are not text"),
}


@pytest.mark.parametrize("name", NO_SYSTEM)
def test_what_is_no_system_message(prepare_rows, name):
    value, message = NO_SYSTEM[name]
    with pytest.raises(ValueError, match=rf"row 1: field `system`.*{message}"):
        prepare_rows("aot", [{"system": value, "prompt": "2 + 2?", **DPO}], **CHAT)


def test_two_system_messages(prepare_rows):
    own = {"role": "system", "content": "be brief"}
    row = {"system": "be kind", "messages": [own, USER], **DPO}
    with pytest.raises(
        ValueError, match=r"row 1: field `system`: the conversation has a system message of its own"
    ):
        prepare_rows("aot", [row], **CHAT)
    both = prepare_rows("aot", [{**row, "system": "be brief"}], **CHAT)
    assert both["prompt"][0].count("be brief") == 1
    none = prepare_rows("aot", [row], drop_system_message=True, **CHAT)
    assert "be" not in none["prompt"][0]


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"role": "user", "content": " "}, "message 1: its content is empty"),
        ({"role": "user", "content": ""}, "message 1: its content is empty"),
        ({"role": "user", "content": 5}, "message 1: its content must be text, found 5"),
        ({"role": "user", "content": "a", "name": {"first": "Ada"}}, "its name must be text"),
    ],
)
def test_messages_that_are_no_text(prepare_rows, message, reason):
    with pytest.raises(ValueError, match=f"row 1: field `messages`.*{reason}"):
        prepare_rows("aot", [{"messages": [message], **DPO}], **CHAT)


# --- Rankings --------------------------------------------------------------------------------------

RATED = [{"prompt": "2 + 2?", "response": str(i), "helpfulness": i} for i in (0, 1, 3, 4)]
RANKED = {"type": "ranked", "field_score": "helpfulness", "on_bad_rows": "drop"}


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ({"response": "four", "helpfulness": None}, "field `helpfulness`: None is not a finite number"),
        ({"response": None, "helpfulness": 4}, "field `response` is missing or null"),
        ({"response": " ", "helpfulness": 4}, "field `response`: the completion is empty"),
        ({"response": "4", "helpfulness": float("nan")}, "field `helpfulness`: nan is not a finite number"),
    ],
)
@pytest.mark.parametrize("place", [4, 0, 2])
def test_one_bad_row_of_a_ranking(prepare_rows, bad, reason, place):
    rows = [*RATED]
    rows.insert(place, {"prompt": "2 + 2?", **bad})
    found = prepare_rows("aot_unpaired", rows, **RANKED)
    assert dict(zip(texts(found, "completion"), found["label"], strict=True)) == {"4": True, "0": False}
    assert counts_in(prepare_rows.log()) == {
        "rows": 5,
        "bad": 1,
        "left out": 2,
        "of these equal": 0,
        "used": 2,
        "truncated": 0,
        "too long, dropped": 0,
    }
    assert f"1 bad rows left out; the first is row {place + 1}: {reason}" in prepare_rows.log()
    pairs = prepare_rows("aot", rows, **RANKED)
    assert (texts(pairs, "chosen"), texts(pairs, "rejected")) == (["4"], ["0"])
    with pytest.raises(ValueError, match=rf"row {place + 1}: {reason}"):
        prepare_rows("aot_unpaired", rows, **{**RANKED, "on_bad_rows": "error"})


def test_a_row_whose_answer_the_template_refuses_stands_alone(prepare_rows):
    template = (
        "{% for m in messages %}{% if m.content == 'no' %}{{ raise_exception('no') }}{% endif %}"
        "[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    other = [{**row, "prompt": "3 + 3?"} for row in RATED]
    rows = [*RATED, {"prompt": "2 + 2?", "response": "no", "helpfulness": 5}, *other]
    found = prepare_rows("aot_unpaired", rows, chat_template="jinja", chat_template_jinja=template, **RANKED)
    assert texts(found, "completion") == ["0", "0", "4"]
    assert counts_in(prepare_rows.log())["bad"] == 1
    assert "the first is row 5: the chat template fails" in prepare_rows.log()


# --- Transcripts -----------------------------------------------------------------------------------

TALK = "\n\nHuman: 2 + 2?\n\nAssistant: 4?\n\nHuman: Sure?\n\nAssistant:"
CONVERSATION = [USER, answer("4?"), {"role": "user", "content": "Sure?"}]


@pytest.mark.parametrize("rl", ["aot", "aot_unpaired"])
@pytest.mark.parametrize("kind", ["pairs", "chat_template"])
def test_transcripts_are_split_at_their_common_beginning(prepare_rows, rl, kind):
    if (rl, kind) == ("aot_unpaired", "chat_template"):
        answers = {"I am: 4": True, "I am: 5": False}
        rows = [{"completion": f"{TALK} {text}", "label": label} for text, label in answers.items()]
        same = [{"messages": CONVERSATION, "completion": t, "label": label} for t, label in answers.items()]
    else:
        rows = [{"chosen": f"{TALK} I am: 4", "rejected": f"{TALK} I am: 5"}]
        same = [{"messages": CONVERSATION, "chosen": "I am: 4", "rejected": "I am: 5"}]
    found, expected = (prepare_rows(rl, each, type=kind) for each in (rows, same))
    for column in ("prompt", "chosen_ids", "rejected_ids", "completion_ids", "label"):
        if column in expected.column_names:
            assert found[column][:] == expected[column][:]


@pytest.mark.parametrize(
    "rejected",
    [
        "\n\nHuman: 2 + 3?\n\nAssistant: 5",
        f"{TALK} 5\n\nHuman: No.\n\nAssistant: 4",
        "\n\nHuman: 2 + 2?\n\nAssistant: 5",
    ],
)
def test_transcripts_that_part_too_early(prepare_rows, rejected):
    rows = [{"chosen": f"{TALK} 4", "rejected": rejected}]
    with pytest.raises(
        ValueError, match="row 1: the transcripts of chosen and rejected part before their last"
    ):
        prepare_rows("aot", rows, type="pairs")


def test_an_answer_that_talks_like_a_transcript_is_text(prepare_rows):
    text = "Human: 2 + 2?\n\nAssistant: 4"
    found = prepare_rows("aot", [{"prompt": "write one", "chosen": text, "rejected": "no"}], type="pairs")
    assert texts(found, "chosen") == [text]


# --- Tokenizers that add an end token -------------------------------------------------------------


@pytest.mark.parametrize(
    ("rl", "row", "kind"),
    [
        ("aot", {"question": "2 + 2?", **DPO}, "chatml.intel"),
        ("aot", {"prompt": "2 + 2?", **DPO}, None),
        ("aot", {"q": "2 + 2?", **DPO}, {"field_prompt": "q"}),
        ("aot_unpaired", {"prompt": "2 + 2?", "completion": "4", "label": True}, "chatml.ultra"),
    ],
)
def test_a_tokenizer_that_adds_its_end_token(prepare_rows, tiny_model, tmp_path, rl, row, kind):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    bos, eos = tokenizer.bos_token, tokenizer.eos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A {eos}", special_tokens=[(t, tokenizer.convert_tokens_to_ids(t)) for t in (bos, eos)]
    )
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    keys = {"tokenizer_config": str(tmp_path / "tokenizer")}
    with pytest.raises(ValueError, match=r"the tokenizer adds its end token, </s>.*add_eos_token: false"):
        prepare_rows(rl, [row], keys=keys, type=kind)
    rows = [{"prompt": "2 + 2?", "completion": text, "label": text == "4"} for text in ("4", "5")]
    found = prepare_rows("aot_unpaired", rows, keys=keys, **CHAT)  # the remedy
    assert all(tokenizer.eos_token_id not in ids for ids in found["completion_ids"])


def test_a_ranking_of_formatted_text_has_one_prompt(prepare_rows):
    row = {"prompt": "red?", "text": "blue?", "completions": [" cat", " dog"], "scores": [1, 0]}
    with pytest.raises(ValueError, match=r"`field_text_prompt: text` is the prompt, and so is .* `prompt`"):
        prepare_rows("aot", [row], type="ranked", field_text_prompt="text")
    # by its usual name it counts only where there are no messages
    (found,) = prepare_rows("aot", [{**row, "text_prompt": "blue?"}], type="ranked")
    assert "<|im_start|>user\nred?" in found["prompt"]
    row = {key: value for key, value in row.items() if key != "prompt"}
    for bad, reason in ({"text": " "}, "is empty"), ({"text": 7}, "expected text"), ({"text": None}, "null"):
        with pytest.raises(ValueError, match=f"row 1: field `text`.*{reason}"):
            prepare_rows("aot", [{**row, **bad}], type="ranked", field_text_prompt="text")


def test_a_ranking_of_conversations_needs_a_chat_template(prepare_rows, tiny_model, tmp_path):
    shutil.copytree(tiny_model, tmp_path / "model")
    (tmp_path / "model/chat_template.jinja").unlink()
    keys = {"base_model": str(tmp_path / "model")}
    row = {"completions": [" cat", " dog"], "scores": [1, 0]}
    with pytest.raises(ValueError, match="`type: ranked`: the tokenizer has no chat template"):
        prepare_rows("aot", [{"prompt": "red?", **row}], type="ranked", keys=keys)
    (found,) = prepare_rows("aot", [{"text_prompt": "red?", **row}], type="ranked", keys=keys)
    assert (found["prompt"], found["chosen"], found["rejected"]) == ("red?", " cat</s>", " dog</s>")
