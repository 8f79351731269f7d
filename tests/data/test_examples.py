"""What a row of each type gives: prompt, completions and label, written out by hand."""

import pytest
from datasets import Dataset

from axolotl_aot.data.entry import Source
from axolotl_aot.data.rows import BadRow, Example
from axolotl_aot.data.types import parse
from tests.tiny import make_tokenizer

USER = {"role": "user", "content": "Two plus two?"}
SYSTEM = {"role": "system", "content": "Be brief."}
GOOD, BAD, SO_SO = ({"role": "assistant", "content": text} for text in ("4", "5", "about 4"))
FOLLOW_UP = [USER, GOOD, {"role": "user", "content": "Sure?"}]
WEATHER = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Paris"}}}
CALL = {"role": "assistant", "content": None, "tool_calls": [WEATHER]}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}

TOKENIZER = make_tokenizer(["Two plus two?"])


def examples(rl: str, options: dict, *rows: dict) -> list[Example]:
    """The samples of the rows, by way of a data set, which fills up what other rows lack."""
    dataset = Dataset.from_list(list(rows))
    entry = parse(rl, {"path": "rows.jsonl", **options}, "datasets[0]")
    entry, dataset = entry.prepare(Source(dataset, {}, 0, [], TOKENIZER))
    return [example._replace(row=None) for row in dataset for example in entry.examples(row)]


CHAT = {"type": "chat_template"}
UNPAIRED = {
    "text, text": (CHAT, {"prompt": "Two plus two?", "completion": "4", "label": True}, [USER], [GOOD]),
    "messages, message": (CHAT, {"messages": FOLLOW_UP, "completion": GOOD, "label": 1}, FOLLOW_UP, [GOOD]),
    "messages, list": (CHAT, {"messages": [USER], "completion": [GOOD], "label": "good"}, [USER], [GOOD]),
    "whole conversation": (CHAT, {"messages": [*FOLLOW_UP, GOOD], "label": "👍"}, FOLLOW_UP, [GOOD]),
    "conversation as completion": (CHAT, {"completion": [USER, GOOD], "label": "True"}, [USER], [GOOD]),
    "system column": (
        CHAT,
        {"system": "Be brief.", "question": "Two plus two?", "answer": "4", "label": True},
        [SYSTEM, USER],
        [GOOD],
    ),
    "system message kept once": (
        CHAT,
        {"system": "Be brief.", "messages": [SYSTEM, USER], "completion": "4", "label": True},
        [SYSTEM, USER],
        [GOOD],
    ),
    "system message dropped": (
        {**CHAT, "drop_system_message": True},
        {"messages": [SYSTEM, USER], "completion": "4", "label": True},
        [USER],
        [GOOD],
    ),
    "sharegpt": (
        CHAT,
        {
            "conversations": [
                {"from": "human", "value": "Two plus two?"},
                {"from": "gpt", "value": "4"},
            ],
            "label": True,
        },
        [USER],
        [GOOD],
    ),
    "own names": (
        {
            **CHAT,
            "field_messages": "thread",
            "field_completion": "reply",
            "field_label": "verdict",
            "label_values": {"positive": ["ship it"], "negative": ["no"]},
            "message_property_mappings": {"role": "who", "content": "said", "reasoning_content": "thought"},
            "roles": {"user": ["customer"], "assistant": ["agent"]},
        },
        {
            "thread": [{"who": "customer", "said": "Two plus two?"}],
            "reply": {"who": "agent", "said": "4", "thought": "Easy."},
            "verdict": "Ship it",
        },
        [USER],
        [{**GOOD, "reasoning_content": "Easy."}],
    ),
    "tool call as completion": (
        CHAT,
        {"messages": [USER], "completion": CALL, "label": True},
        [USER],
        [CALL],
    ),
    "arguments as text": (
        CHAT,
        {
            "messages": [USER],
            "completion": {
                **CALL,
                "tool_calls": [
                    {**WEATHER, "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
                ],
            },
            "label": True,
        },
        [USER],
        [CALL],
    ),
    "parts of text": (
        CHAT,
        {
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "text", "text": "Two plus "}, {"type": "text", "text": "two?"}],
                }
            ],
            "completion": "4",
            "label": True,
        },
        [USER],
        [GOOD],
    ),
}


@pytest.mark.parametrize("case", UNPAIRED)
def test_unpaired_conversations(case):
    options, row, prompt, completion = UNPAIRED[case]
    assert examples("aot_unpaired", options, row) == [Example(prompt, (completion,), True)]


def test_the_last_turn_where_another_column_would_be_taken():
    row = {"messages": [*FOLLOW_UP, GOOD], "answer": "42", "label": True}
    with pytest.raises(BadRow, match="set `field_completion: messages` to take it"):
        examples("aot_unpaired", CHAT, row)
    (example,) = examples("aot_unpaired", {**CHAT, "field_completion": "messages"}, row)
    assert (example.prompt, example.completions) == (FOLLOW_UP, ([GOOD],))


@pytest.mark.parametrize("value", [False, 0, -1, 0.0, "0", "False", " bad ", "👎", "rejected"])
def test_labels_of_bad_answers(value):
    (example,) = examples("aot_unpaired", CHAT, {"prompt": "a", "completion": "b", "label": value})
    assert example.label is False


@pytest.mark.parametrize("label", [True, False])
@pytest.mark.parametrize("kind", ["chat_template", None, {"field_prompt": "question"}])
def test_a_label_for_all_rows_of_an_entry(label, kind):
    row = {"prompt": "a", "question": "a", "completion": "b"}
    (example,) = examples("aot_unpaired", {"type": None, "label": label}, row)
    assert example.label is label


def test_a_row_that_lacks_what_others_have_is_as_it_was_written():
    rows = [
        {"messages": [USER], "completion": CALL, "tools": [TOOL], "label": True},
        {"messages": [USER], "completion": GOOD, "tools": None, "label": False},
    ]
    called, answered = examples("aot_unpaired", CHAT, *rows)
    assert (called.completions, called.tools) == (([CALL],), [TOOL])
    assert (answered.completions, answered.tools) == (([GOOD],), None)


@pytest.mark.parametrize(
    "tools",
    [[TOOL], '[{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]'],
)
def test_tools_are_read_from_lists_and_from_json(tools):
    (example,) = examples(
        "aot_unpaired", CHAT, {"prompt": "a", "completion": "b", "label": 1, "tools": tools}
    )
    assert example.tools == [TOOL]


def test_a_weight_column():
    rows = [{"prompt": "a", "completion": "b", "label": 1, "w": w} for w in (2, 0.5)]
    assert [e.weight for e in examples("aot_unpaired", {**CHAT, "field_weight": "w"}, *rows)] == [2, 0.5]


# --- Pairs -----------------------------------------------------------------------------------------

PAIR_SHAPES = {
    "texts": {"prompt": "Two plus two?", "chosen": "4", "rejected": "5"},
    "intel": {"question": "Two plus two?", "chosen": "4", "rejected": "5"},
    "icr": {"input": "Two plus two?", "chosen": "4", "rejected": "5"},
    "argilla": {"instruction": "Two plus two?", "chosen_response": "4", "rejected_response": "5"},
    "messages": {"messages": [USER], "chosen": GOOD, "rejected": BAD},
    "argilla_chat": {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
    "ultra": {"prompt": "Two plus two?", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
    "ultrafeedback_binarized": {
        "prompt": "Two plus two?",
        "messages": [USER, GOOD],
        "chosen": [USER, GOOD],
        "rejected": [USER, BAD],
    },
}


@pytest.mark.parametrize("shape", PAIR_SHAPES)
def test_pairs_of_any_shape(shape):
    row = PAIR_SHAPES[shape]
    assert examples("aot_unpaired", {"type": "pairs"}, row) == [
        Example([USER], ([GOOD],), True),
        Example([USER], ([BAD],), False),
    ]
    for options in (CHAT, {"type": "pairs"}):
        assert examples("aot", options, row) == [Example([USER], ([GOOD], [BAD]), True)]


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [
        (["4", "about 4"], ["5"]),
        ([[GOOD], [SO_SO]], [[BAD]]),
        ([GOOD, SO_SO], [BAD]),
        ([[USER, GOOD], [USER, SO_SO]], [[USER, BAD]]),
    ],
)
def test_several_chosen_for_a_prompt(chosen, rejected):
    found = examples(
        "aot_unpaired", {"type": "pairs"}, {"messages": [USER], "chosen": chosen, "rejected": rejected}
    )
    assert [(e.prompt, e.completions[0], e.label) for e in found] == [
        ([USER], [GOOD], True),
        ([USER], [SO_SO], True),
        ([USER], [BAD], False),
    ]


def test_a_prompt_with_chosen_completions_only():
    row = {"prompt": "Two plus two?", "chosen": ["4"], "rejected": []}
    assert [e.label for e in examples("aot_unpaired", {"type": "pairs"}, row)] == [True]


# --- Scores and ranks ------------------------------------------------------------------------------


def labels(options: dict, scores: list) -> list:
    rows = [{"prompt": "a", "completion": "b", "score": score} for score in scores]
    return [e.label for e in examples("aot_unpaired", {"type": "scored", **options}, *rows)]


def test_labels_by_value():
    scores = [0.0, 0.05, 0.3, 0.5, 0.51]
    assert labels({"positive_above": 0.5, "negative_below": 0.05}, scores) == [False, None, None, None, True]
    assert labels({"positive_above": 0.5}, scores) == [None, None, None, None, True]


def test_labels_by_share():
    scores = [3.0, 1.0, 10.0, 7.0, 2.0, 9.0, 4.0, 8.0, 6.0, 5.0]  # 1 to 10
    found = labels({"positive_top": 0.3, "negative_bottom": 0.2}, scores)
    assert {s for s, label in zip(scores, found, strict=True) if label is True} == {8, 9, 10}
    assert {s for s, label in zip(scores, found, strict=True) if label is False} == {1, 2}
    mixed = labels({"positive_above": 8.5, "negative_bottom": 0.1}, scores)
    assert (mixed.count(True), mixed.count(False)) == (2, 1)


def test_shares_of_scores_that_are_mostly_equal():
    with pytest.raises(ValueError, match=r"`positive_top: 0.3`, `negative_bottom: 0.3`: scores from 1 to 1"):
        labels({"positive_top": 0.3, "negative_bottom": 0.3}, [1.0] * 9 + [2.0])


LISTS = {"prompt": "Two plus two?", "completions": ["5", "4", "about 4"]}
RANKINGS = {
    "ultrafeedback": {
        "instruction": "Two plus two?",
        "models": ["a", "b", "c"],
        "completions": [
            {"response": "5", "overall_score": 1.0, "model": "a"},
            {"response": "4", "overall_score": 9.5, "model": "b"},
            {"response": "about 4", "overall_score": 6.0, "model": "c"},
        ],
    },
    "nectar": {
        "prompt": "Two plus two?",
        "answers": [
            {"answer": "5", "rank": 3.0},
            {"answer": "4", "rank": 1.0},
            {"answer": "about 4", "rank": 2.0},
        ],
    },
    "columns of scores": {**LISTS, "scores": [0.1, 0.9, 0.5]},
    "columns of ranks": {**LISTS, "ranks": [3, 1, 2]},
    "order": {**LISTS, "completions": ["4", "about 4", "5"]},
    "messages in order": {"messages": [USER], "completions": [GOOD, SO_SO, BAD]},
    "conversations in order": {"completions": [[USER, GOOD], [USER, SO_SO], [USER, BAD]]},
}


@pytest.mark.parametrize("shape", RANKINGS)
def test_rankings_of_any_shape(shape):
    found = examples("aot_unpaired", {"type": "ranked"}, RANKINGS[shape])
    assert {(e.completions[0][0]["content"], e.label) for e in found} == {
        ("4", True),
        ("5", False),
        ("about 4", None),
    }
    assert all(e.prompt == [USER] for e in found)
    assert examples("aot", {"type": "ranked"}, RANKINGS[shape]) == [Example([USER], ([GOOD], [BAD]), True)]


FLAT = [
    {"prompt": prompt, "response": response, "helpfulness": score, "w": 3.0}
    for prompt, response, score in [
        ("Two plus two?", "5", 0),
        ("One plus one?", "2", 4),
        ("Two plus two?", "4", 4),
        ("One plus one?", "3", 1),
        ("Two plus two?", "about 4", 2),
    ]
]


def test_rows_of_one_completion_are_put_together_by_prompt():
    options = {"type": "ranked", "field_score": "helpfulness", "field_weight": "w"}
    two, one = examples("aot", options, *FLAT)
    assert two == Example([USER], ([GOOD], [BAD]), True, weight=3.0)
    assert [c[0]["content"] for c in one.completions] == ["2", "3"]
    found = examples("aot_unpaired", options, *FLAT)
    assert [(e.completions[0][0]["content"], e.label) for e in found] == [
        ("5", False),
        ("4", True),
        ("about 4", None),
        ("2", True),
        ("3", False),
    ]


def test_shares_and_values_within_a_ranking():
    row = {"prompt": "a", "completions": list("bcdef"), "scores": [1, 2, 3, 4, 5]}

    def found(**options):
        return [e.label for e in examples("aot_unpaired", {"type": "ranked", **options}, row)]

    assert found(positive_top=0.4, negative_bottom=0.2) == [False, None, None, True, True]
    assert found(positive_above=4, negative_below=3) == [False, False, None, None, True]


def test_equal_completions_are_left_out():
    row = {"prompt": "a", "completions": ["b", "c"], "scores": [1, 1]}
    for rl in ("aot", "aot_unpaired"):
        assert {e.label for e in examples(rl, {"type": "ranked"}, row)} == {None}
    top = {"positive_top": 0.5, "negative_bottom": 0.5}
    assert {e.label for e in examples("aot_unpaired", {"type": "ranked", **top}, row)} == {None}


def test_scores_are_found_where_the_first_row_has_none():
    rows = [{**LISTS, "scores": None}, {**LISTS, "scores": [0.1, 0.9, 0.5]}]
    with pytest.raises(BadRow, match="field `scores`: neither a list of this row"):
        examples("aot_unpaired", {"type": "ranked"}, *rows)


def test_weights_of_rows_that_are_put_together():
    rows = [{**row, "w": weight} for row, weight in zip(FLAT, (1.0, 2.0, 3.0, 2.0, 5.0), strict=True)]
    options = {"type": "ranked", "field_score": "helpfulness", "field_weight": "w"}
    found = examples("aot_unpaired", options, *rows)
    assert [(e.completions[0][0]["content"], e.weight) for e in found] == [
        ("5", 1),
        ("4", 3),
        ("about 4", 5),
        ("2", 2),
        ("3", 2),
    ]
    with pytest.raises(
        BadRow, match="field `w`: a pair has one weight, and the best and the worst have 3 and 1"
    ):
        examples("aot", options, *rows)


def test_a_prompt_with_one_row_has_nothing_to_compare():
    rows = [*FLAT, {"prompt": "Three?", "response": "3", "helpfulness": 1, "w": 3.0}]
    *_, last = examples("aot_unpaired", {"type": "ranked", "field_score": "helpfulness"}, *rows)
    assert last.label is None


def test_several_answers_of_a_role_of_ones_own():
    options = {"type": "pairs", "roles": {"assistant": ["bot"]}, "message_property_mappings": {"role": "who"}}
    chosen = [{"who": "bot", "content": text} for text in ("4", "four")]
    row = {"prompt": "Two plus two?", "chosen": chosen, "rejected": ["5"]}
    assert [e.label for e in examples("aot_unpaired", options, row)] == [True, True, False]


# --- Rows that cannot be used ----------------------------------------------------------------------

OK = {"prompt": "a", "completion": "b", "label": True, "score": 1.0}
SCORED = {"type": "scored", "positive_above": 0.5}
RANKED = {"type": "ranked"}
BAD_ROWS = {
    "no prompt": (CHAT, {**OK, "prompt": None}, "field `prompt` is missing or null"),
    "empty prompt": (CHAT, {**OK, "prompt": " "}, "field `prompt`: the prompt is empty"),
    "no completion": (CHAT, {**OK, "completion": None}, "field `completion` is missing or null"),
    "empty completion": (CHAT, {**OK, "completion": "\n"}, "field `completion`: the completion is empty"),
    "no prompt messages": (CHAT, {**OK, "prompt": []}, "field `prompt`: the prompt is empty"),
    "calls that are none": (
        CHAT,
        {**OK, "completion": {"role": "assistant", "content": "b", "tool_calls": ["f"]}},
        "message 1: tool_calls must be a list of calls, each with a `function`",
    ),
    "tools without a schema": (
        CHAT,
        {**OK, "tools": [{"function": "f"}]},
        "expected a JSON schema, found 'f'",
    ),
    "a completion that is null": (
        RANKED,
        {"prompt": "a", "completions": [{"text": "b", "score": 1}, None]},
        "field `score`: None is not a finite number",
    ),
    "an own answer before pairs": (
        {"type": "pairs"},
        {"messages": [USER, GOOD], "chosen": "4", "rejected": "5"},
        "the conversation ends with the assistant's turn",
    ),
    "no messages": (CHAT, {**OK, "completion": []}, "field `completion`: the completion is empty"),
    "no label": (CHAT, {**OK, "label": None}, "field `label` is missing or null"),
    "other label": (CHAT, {**OK, "label": "meh"}, "field `label`: the label 'meh' is none of True, 1"),
    "label out of label_values": (
        {**CHAT, "label_values": {"positive": [5], "negative": [1]}},
        {**OK, "label": 3},
        r"the label 3 is none of 5 \(positive\) and 1 \(negative\)",
    ),
    "no score": (SCORED, {**OK, "score": None}, "field `score` is missing or null"),
    "score as text": (SCORED, {**OK, "score": "0.9"}, "field `score`: '0.9' is not a finite number"),
    "score is true": (SCORED, {**OK, "score": True}, "field `score`: True is not a finite number"),
    "score is NaN": (SCORED, {**OK, "score": float("nan")}, "field `score`: nan is not a finite number"),
    "weight of zero": (
        {**CHAT, "field_weight": "score"},
        {**OK, "score": 0.0},
        "field `score`: the weight 0 is not above 0",
    ),
    "unknown role": (
        CHAT,
        {**OK, "prompt": [{"role": "bot", "content": "a"}]},
        "field `prompt`, message 1: the role 'bot' is none of assistant, gpt, human, system, tool, user",
    ),
    "user's completion": (
        CHAT,
        {"messages": [USER], "label": 1},
        "field `messages`: a completion holds the assistant's messages only, not one of `user`",
    ),
    "no role": (
        CHAT,
        {**OK, "prompt": [{"content": "a"}]},
        "message 1: no role among its properties content",
    ),
    "no content": (
        CHAT,
        {**OK, "completion": {"role": "assistant", "content": None}},
        "message 1: its content is missing or null, and it calls no tool",
    ),
    "an image": (
        CHAT,
        {**OK, "prompt": [{"role": "user", "content": [{"type": "image", "image": "x"}]}]},
        "its content has parts that are not text",
    ),
    "a conversation of one": (CHAT, {"messages": [GOOD], "label": 1}, "must have messages before its last"),
    "two last turns": (
        CHAT,
        {"messages": [USER, GOOD], "completion": "4", "label": 1},
        "the conversation ends with the assistant's turn",
    ),
    "broken JSON": (CHAT, {**OK, "tools": "[{"}, "field `tools`: not valid JSON"),
    "tools that are none": (CHAT, {**OK, "tools": '"weather"'}, "tools must be a list of JSON schemas"),
    "numbers": (
        CHAT,
        {**OK, "prompt": 5},
        "field `prompt`: expected text, found 5; if it is meant, write it as text, in quotes",
    ),
    "both empty": ({"type": "pairs"}, {"prompt": "a", "chosen": [], "rejected": []}, "are both empty"),
    "a ranking of one": (RANKED, {"prompt": "a", "completions": ["b"]}, "needs two completions or more"),
    "other scores": (
        RANKED,
        {**LISTS, "scores": [1, 2]},
        "field `scores`: 2 values for the 3 completions of `completions`",
    ),
    "no score or rank": (
        RANKED,
        {"prompt": "a", "completions": [{"text": "b", "stars": 1}, {"text": "c", "stars": 2}]},
        "no score or rank in a completion with text, stars; set field_score or field_rank",
    ),
    "no text": (
        RANKED,
        {"prompt": "a", "completions": [{"body": "b", "score": 1}, {"body": "c", "score": 2}]},
        "no text in a completion with body, score; set field_completion",
    ),
    "ranks, and a threshold of scores": (
        {**RANKED, "positive_above": 0.5},
        {**LISTS, "ranks": [1, 2, 3]},
        "positive_above and negative_below need scores",
    ),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_bad_rows_are_refused(case):
    options, row, message = BAD_ROWS[case]
    with pytest.raises(BadRow, match=message):
        examples("aot_unpaired", options, row)


def test_pairs_of_different_conversations():
    row = {"chosen": [USER, GOOD], "rejected": [SYSTEM, USER, BAD]}
    with pytest.raises(BadRow, match="`chosen` and `rejected`: the two conversations differ"):
        examples("aot", CHAT, row)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({**CHAT, "field_completion": "compltion"}, "`field_completion: compltion`: there is no such column"),
        (
            {"type": "scored", "positive_above": 1, "field_completion": "label"},
            r"no column is called score or scores .*; set `field_score`",
        ),
        (
            {"type": "pairs"},
            r"no column is called chosen or chosen_response; set `field_chosen`. Columns: prompt",
        ),
        ({"type": "ranked"}, "`type: ranked` finds neither a column with the completions of a prompt"),
    ],
)
def test_options_that_do_not_fit_the_columns(options, message):
    with pytest.raises(ValueError, match=message):
        examples("aot_unpaired", options, {"prompt": "a", "completion": "b", "label": True})


def test_a_conversation_without_a_label():
    with pytest.raises(ValueError, match="no column is called label; set `field_label`, or `label: true`"):
        examples("aot_unpaired", CHAT, {"prompt": "a", "completion": "b"})
