"""Pairs whose answers are the same tokens: counted, left out, warned of by cause, an error if all are."""

import pytest

from tests.data.entries import counts_in

CHAT = {"type": "chat_template"}
USER = {"role": "user", "content": "cat?"}


def pair(chosen, rejected, **more) -> dict:
    return {"prompt": "cat?", "chosen": chosen, "rejected": rejected, **more}


def conversation(*turns: str) -> list[dict]:
    return [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)]


LONG = "dog " * 40
# rows that are equal, and what the message says of the cause; options of the entry, keys of the YAML
CAUSES = {
    "equal rows": (pair("dog", "dog"), "1: chosen and rejected are the same in the file", {}, {}),
    "equal messages": (
        pair(
            [USER, {"role": "assistant", "content": "dog"}], [USER, {"role": "assistant", "content": "dog"}]
        ),
        "1: chosen and rejected are the same in the file",
        {},
        {},
    ),
    "white space": (
        pair("dog", "dog "),
        "1: chosen and rejected differ in the file, but `type: chat_template` and the chat template make",
        {"chat_template": "llama3"},
        {},
    ),
    "a cut": (
        pair(LONG + "one", LONG + "two"),
        "1: they differ only beyond `sequence_len: 40`",
        {},
        {"sequence_len": 40, "excess_length_strategy": "truncate"},
    ),
    "a type that reads one turn": (
        {
            "chosen": conversation("1 + 1?", "2", "2 + 2?", "4"),
            "rejected": conversation("1 + 1?", "2", "2 + 2?", "5"),
        },
        "1: chosen and rejected differ in the file, but `type: chatml.argilla_chat`",
        {"type": "chatml.argilla_chat"},
        {},
    ),
    "a type of axolotl's": (
        pair("dog", "dog"),
        "1: chosen and rejected are the same in the file",
        {"type": "chatml.prompt_pairs"},
        {},
    ),
    "a type of the user's": (
        {"q": "cat?", "good": "dog", "poor": "dog"},
        "1: chosen and rejected are the same in the file",
        {"type": {"field_prompt": "q", "field_chosen": "good", "field_rejected": "poor"}},
        {},
    ),
    "a ranking": (
        {"prompt": "cat?", "completions": ["dog", "dog"], "scores": [1, 2]},
        "1: chosen and rejected are the same in the file",
        {"type": "ranked"},
        {},
    ),
}


@pytest.mark.parametrize("name", CAUSES)
def test_equal_pairs_are_left_out(prepare_rows, name):
    equal, message, options, keys = CAUSES[name]
    if "completions" in equal:
        other = {**equal, "completions": ["bird", "fish"]}
    elif "q" in equal:
        other = {**equal, "poor": "bird"}
    elif "prompt" in equal:
        other = pair(
            *(
                [[USER, {"role": "assistant", "content": text}] for text in ("a", "b")]
                if isinstance(equal["chosen"], list)
                else ("red", "blue")
            )
        )
    else:
        other = {"chosen": conversation("1?", "2"), "rejected": conversation("1?", "3")}
    options = {**CHAT, **options}
    found = prepare_rows("aot", [other, equal, other], keys=keys, **options)
    assert len(found) == 2
    assert all(row["chosen_ids"] != row["rejected_ids"] for row in found)
    counts = counts_in(prepare_rows.log())
    assert (counts["rows"], counts["left out"], counts["of these equal"], counts["used"]) == (3, 1, 1, 2)
    said = "1 pairs have two answers that are the same tokens, from which nothing can be learnt"
    assert said in prepare_rows.log() and "The first is row 2" in prepare_rows.log()
    assert message in prepare_rows.log()
    with pytest.raises(
        ValueError, match=r"datasets\[0\] .*: no row is left to use: 2 pairs have two answers"
    ):
        prepare_rows("aot", [equal, equal], keys=keys, **options)


def test_an_answer_that_is_chosen_and_rejected_at_once(prepare_rows):
    rows = [pair("dog", "dog"), pair("red", "blue"), pair(["dog", "one"], ["two", "dog"])]
    rows = [{**r, "chosen": [r["chosen"]] if isinstance(r["chosen"], str) else r["chosen"]} for r in rows]
    rows = [
        {**r, "rejected": [r["rejected"]] if isinstance(r["rejected"], str) else r["rejected"]} for r in rows
    ]
    found = prepare_rows("aot_unpaired", rows, type="pairs")
    assert sorted(zip((c[:3] for c in found["completion"]), found["label"], strict=True)) == [
        ("blu", False),
        ("one", True),
        ("red", True),
        ("two", False),
    ]
    counts = counts_in(prepare_rows.log())
    assert (counts["left out"], counts["of these equal"], counts["used"]) == (4, 4, 4)
    assert "4 answers stand with both labels in their row" in prepare_rows.log()


def test_rows_of_one_label_may_repeat(prepare_rows):
    rows = [{"prompt": "cat?", "completion": "dog", "label": label} for label in (True, True, False)]
    assert len(prepare_rows("aot_unpaired", rows, **CHAT)) == 3


# --- Types that do not read what their name says -----------------------------------------------------


def test_the_worst_answer_as_the_best_is_said_before_training(prepare_rows):
    answers = [{"answer": text, "rank": rank} for text, rank in (("good", 1.0), ("so-so", 2.0), ("bad", 3.0))]
    found = prepare_rows("aot", [{"prompt": "cat?", "answers": answers}], type="zephyr.nectar")
    assert found["chosen"][0].startswith("bad")
    said = "`type: zephyr.nectar` takes the answer with the worst rank as chosen"
    assert said in prepare_rows.log() and "use `type: ranked`" in prepare_rows.log()
    # the remedy that it names
    fields = {"field_completions": "answers", "field_completion": "answer", "field_rank": "rank"}
    found = prepare_rows("aot", [{"prompt": "cat?", "answers": answers}], type="ranked", **fields)
    assert (found["chosen"][0][:4], found["rejected"][0][:3]) == ("good", "bad")


@pytest.mark.parametrize("kind", ["chatml.argilla_chat", "llama3.argilla_chat", "chatml.ultra"])
@pytest.mark.parametrize("turns", [2, 4])
def test_turns_that_a_type_does_not_read_are_said_before_training(prepare_rows, kind, turns):
    before = ("1 + 1?", "2", "2 + 2?")[-(turns - 1) :]
    row = {"chosen": conversation(*before, "4"), "rejected": conversation(*before, "5")}
    other = {"chosen": conversation("3?", "6"), "rejected": conversation("3?", "7")}
    rows = [{**r, "prompt": r["chosen"][0]["content"]} for r in (row, other)]
    prepare_rows("aot", rows, type=kind)
    assert ("does not read all turns of a conversation" in prepare_rows.log()) is (turns == 4)
