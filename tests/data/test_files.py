"""Text is text, whatever it looks like and whatever file it stands in."""

import json

import pytest
from datasets import Dataset

from tests.data.entries import counts_in

CHAT = {"type": "chat_template"}


def texts(dataset, column: str) -> list[str]:
    """A column's texts without what the template puts after them."""
    return [text.removesuffix("<|im_end|>\n") for text in dataset[column]]


JSON_TEXT = [
    '{"role": "assistant", "content": "hi"}',
    '{"from": "Oslo", "to": "Rome"}',
    '[{"role": "assistant", "content": "ho"}]',
    "[1, 2, 3]",
    '"quoted"',
    "null",
    "5",
    "2024-05-01",
    "2024-05-01 10:00:00",
    "true",
]


@pytest.mark.parametrize("text", JSON_TEXT)
@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet"])
def test_text_that_looks_like_something_else(prepare_rows, tmp_path, text, suffix):
    rows = [{"prompt": text, "chosen": text, "rejected": f"{text}!"}]
    if suffix == "jsonl":
        found = prepare_rows("aot", rows, **CHAT)
    else:
        path = tmp_path / f"rows.{suffix}"
        if suffix == "json":
            path.write_text(json.dumps(rows, indent=1))
        else:
            Dataset.from_list(rows).to_parquet(path)
        found = prepare_rows("aot", "", "other.jsonl", {"datasets": [{"path": str(path), **CHAT}]})
    assert texts(found, "chosen") == [text]
    assert texts(found, "rejected") == [f"{text}!"]
    assert f"<|im_start|>user\n{text}<|im_end|>" in found["prompt"][0]


def test_json_text_beside_messages_in_one_column(prepare_rows):
    """A column of several types is kept by `datasets` as JSON, which text must survive."""
    message = {"role": "assistant", "content": "hi"}
    rows = [{"prompt": "cat?", "completion": c, "label": i % 2} for i, c in enumerate([message, *JSON_TEXT])]
    found = prepare_rows("aot_unpaired", rows, **CHAT)
    assert texts(found, "completion") == ["hi", *JSON_TEXT]


def test_numbers_beside_text_are_bad_rows(prepare_rows):
    rows = [
        {"prompt": "cat?", "completion": c, "label": i > 1} for i, c in enumerate(["5", 5, "a", 3.14, True])
    ]
    found = prepare_rows("aot_unpaired", rows, on_bad_rows="drop", **CHAT)
    assert texts(found, "completion") == ["5", "a"]
    assert counts_in(prepare_rows.log())["bad"] == 3
    assert (
        "row 2: field `completion`: expected text, found 5; if it is meant, write it as text, in quotes"
        in (prepare_rows.log())
    )


def test_messages_whose_text_looks_like_a_date(prepare_rows):
    messages = [
        {"role": "user", "content": "2024-05-01"},
        {"role": "assistant", "content": "2024-05-02T10:00:00Z"},
    ]
    found = prepare_rows("aot_unpaired", [{"messages": messages, "label": i} for i in (0, 1)], **CHAT)
    assert texts(found, "completion") == ["2024-05-02T10:00:00Z"] * 2
    assert "user\n2024-05-01<" in found["prompt"][0]


# --- CSV and TSV -----------------------------------------------------------------------------------

CELLS = [
    "0042",
    "007",
    "3.14",
    "1e3",
    "True",
    "null",
    "NA",
    "nan",
    "2024-05-01",
    "-",
    "[1, 2]",
    '{"a": 1}',
    "None",
]


def table(names: list[str], rows: list[list[str]], separator: str) -> str:
    quoted = [['"' + cell.replace('"', '""') + '"' for cell in row] for row in [names, *rows]]
    return "".join(separator.join(row) + "\n" for row in quoted)


@pytest.mark.parametrize(
    ("file", "separator"), [("rows.csv", ","), ("rows.tsv", "\t"), ("rows.csv.tsv", "\t")]
)
def test_cells_are_text(prepare_rows, file, separator):
    content = table(["prompt", "chosen", "rejected"], [[c, c, f"{c}{c}"] for c in CELLS], separator)
    found = prepare_rows("aot", content, file, **CHAT)
    assert texts(found, "chosen") == CELLS
    assert texts(found, "rejected") == [c + c for c in CELLS]
    assert all(f"user\n{cell}<" in prompt for cell, prompt in zip(CELLS, found["prompt"], strict=True))


def test_cells_of_the_case_without_quotes(prepare_rows):
    content = "prompt,chosen,rejected\ncode of the door?,0042,9999\ncode of the gate?,0007,8888\n"
    found = prepare_rows("aot", content, "rows.csv", **CHAT)
    assert texts(found, "chosen") == ["0042", "0007"]


def test_numbers_and_labels_of_a_csv_file_are_read_as_such(prepare_rows):
    content = "prompt,completion,score,w\ncat?,01,0.9,2\ncat?,02,1e-2,1.5\ncat?,03,high,1\ncat?,04,,1\n"
    options = {"type": "scored", "positive_above": 0.5, "negative_below": 0.5, "field_weight": "w"}
    found = prepare_rows("aot_unpaired", content, "rows.csv", on_bad_rows="drop", **options)
    assert (texts(found, "completion"), found["label"][:], found["weight"][:]) == (
        ["01", "02"],
        [True, False],
        [2.0, 1.5],
    )
    assert "2 bad rows left out; the first is row 3: field `score`: 'high' is not a finite number" in (
        prepare_rows.log()
    )
    for labels, values in (
        (("1", "0"), None),
        (("True", "False"), None),
        (("5.0", "1"), {"positive": [5], "negative": [1]}),
        (("TRUE", "n"), {"positive": [True], "negative": ["N"]}),
    ):
        content = "prompt,completion,label\n" + "".join(f"cat?,07,{label}\n" for label in labels)
        options = {"label_values": values} if values else {}
        assert prepare_rows("aot_unpaired", content, "rows.csv", **CHAT, **options)["label"][:] == [
            True,
            False,
        ]


CONVERSATION = json.dumps([{"role": "user", "content": "cat?"}, {"role": "assistant", "content": "dog"}])


def test_conversations_in_csv_are_decoded_where_all_are(prepare_rows):
    good = table(["messages", "label"], [[CONVERSATION, "1"], ["", "1"], [CONVERSATION, "0"]], ",")
    found = prepare_rows("aot_unpaired", good, "rows.csv", on_bad_rows="drop", **CHAT)
    assert texts(found, "completion") == ["dog", "dog"]
    assert "row 2: field `messages`" in prepare_rows.log()
    mixed = table(
        ["prompt", "completion", "label"], [["write a chat", CONVERSATION, "1"], ["cat?", "dog", "0"]], ","
    )
    found = prepare_rows("aot_unpaired", mixed, "rows.csv", **CHAT)
    assert texts(found, "completion") == [CONVERSATION, "dog"]
    assert "`completion` is taken as text: some of its rows are lists of messages" in prepare_rows.log()
    assert "but row 2 is not" in prepare_rows.log()


def test_conversations_as_text_where_there_are_lists(prepare_rows):
    rows = [{"messages": CONVERSATION, "completion": c, "label": c == "a"} for c in ("a", "b")]
    found = prepare_rows("aot_unpaired", rows, **CHAT)
    assert f"user\n{CONVERSATION}<" in found["prompt"][0]
    assert "`messages` is text, and taken as such, but looks like lists of messages" in prepare_rows.log()
    prepare_rows("aot_unpaired", [*rows, {**rows[0], "messages": "cat?"}], **CHAT)
    assert "looks like lists of messages" not in prepare_rows.log()


def test_a_folder_of_csv_files_and_named_ones(prepare_rows, tmp_path):
    for folder, suffix, separator in (("commas", "csv", ","), ("tabs", "tsv", "\t")):
        (tmp_path / folder).mkdir()
        for part in ("a", "b"):
            rows = [["cat?", f"00{part}7"[-3:] if part == "b" else "007", "8"]]
            (tmp_path / folder / f"{part}.{suffix}").write_text(
                table(["prompt", "chosen", "rejected"], rows, separator)
            )
        whole = {"path": str(tmp_path / folder), **CHAT}
        named = {**whole, "data_files": [str(tmp_path / folder / f"a.{suffix}")], "ds_type": "csv"}
        for one, count in ((whole, 2), (named, 1)):
            found = prepare_rows("aot", "x", "unused.txt", {"datasets": [one]})
            assert len(found) == count
            assert "007" in texts(found, "chosen")


def test_a_part_of_a_csv_file(prepare_rows):
    content = "prompt,chosen,rejected\n" + "".join(f"cat?,0{i},9\n" for i in range(6))
    found = prepare_rows("aot", content, "rows.csv", split="train[2:4]", **CHAT)
    assert texts(found, "chosen") == ["02", "03"]


# --- Nothing in it ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("rows.jsonl", "", "the file is empty"),
        ("rows.csv", "", "the file is empty"),
        ("rows.csv", "prompt,chosen,rejected\n", "there are no rows"),
        ("rows.jsonl", "\n\n", "there are no rows"),
        ("rows.json", "[]", "there are no rows"),
    ],
)
def test_files_without_rows(prepare_rows, file, content, message):
    with pytest.raises(ValueError, match=rf"datasets\[0\] \(.*{file}\): {message}"):
        prepare_rows("aot", content, file, **CHAT)
