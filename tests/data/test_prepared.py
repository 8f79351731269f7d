"""Prepared data are used again if, and only if, nothing has changed that their tokens depend on."""

import json
import os
import shutil

import pytest
from transformers import AutoTokenizer

from axolotl_aot.data.files.fingerprint import tokenizer_fingerprint
from tests.data.entries import entry
from tests.tiny import make_pairs, write_jsonl

THOUGHTS = [
    {"prompt": f"river {i}", "chosen": f"<think>a</think>good {i}", "rejected": f"<think>b</think>bad {i}"}
    for i in range(3)
]
TOKENS = {"tokens": ["<think>", "</think>"]}


@pytest.fixture
def tokenizer_folder(tiny_model, tmp_path):
    """A tokenizer of the test's own, which it may edit."""
    folder = tmp_path / "tokenizer"
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return folder


@pytest.fixture
def options(config, tmp_path, tokenizer_folder) -> dict:
    datasets = [entry(tmp_path / "rows.jsonl", THOUGHTS, type="chat_template")]
    return {**config, "rl": "aot", "tokenizer_config": str(tokenizer_folder), "datasets": datasets}


def was_prepared(prepare, options: dict) -> bool:
    """Whether the rows were read anew."""
    prepare(options)
    return "Loading prepared dataset from disk" not in prepare.log()


def edit(path, change) -> None:
    contents = json.loads(path.read_text())
    change(contents)
    path.write_text(json.dumps(contents))


def lower_case(contents: dict) -> None:
    contents["normalizer"] = {"type": "Lowercase"}


def merges_gone(contents: dict) -> None:
    contents["model"]["merges"] = contents["model"]["merges"][:-3]


def another_word(contents: dict) -> None:
    vocabulary = contents["model"]["vocab"]
    vocabulary["xyzzy"] = max(vocabulary.values()) + 1


def no_beginning(contents: dict) -> None:
    contents["post_processor"] = None


EDITS = {
    "normalizer": ("tokenizer.json", lower_case),
    "merges": ("tokenizer.json", merges_gone),
    "vocabulary": ("tokenizer.json", another_word),
    "post-processor": ("tokenizer.json", no_beginning),
    "end token": ("tokenizer_config.json", lambda contents: contents.update(eos_token="<|im_end|>")),
}


def test_tokens_that_the_yaml_adds_are_in_the_rows(prepare, options):
    without, _ = prepare(options)
    added, _ = prepare({**options, **TOKENS})
    again, _ = prepare(options)
    assert len(added["chosen_ids"][0]) < len(without["chosen_ids"][0])
    assert max(max(ids) for ids in added["chosen_ids"]) > max(max(ids) for ids in without["chosen_ids"])
    assert again["chosen_ids"][:] == without["chosen_ids"][:]


@pytest.mark.parametrize("name", EDITS)
def test_a_tokenizer_that_was_edited_in_place(prepare, options, tokenizer_folder, name):
    file, change = EDITS[name]
    assert was_prepared(prepare, options)
    assert not was_prepared(prepare, options)
    edit(tokenizer_folder / file, change)
    assert was_prepared(prepare, options)
    assert not was_prepared(prepare, options)


def test_a_chat_template_that_was_edited_in_place(prepare, options, tokenizer_folder):
    options = {key: value for key, value in options.items() if key != "chat_template"}
    assert was_prepared(prepare, options)
    path = tokenizer_folder / "chat_template.jinja"
    path.write_text(path.read_text().replace("<|im_end|>", "<|im_end|>!"))
    assert was_prepared(prepare, options)


def test_an_order_of_rows_belongs_to_its_seed(prepare, options):
    first = prepare({**options, "seed": 1})[0]["prompt"][:]
    found = {tuple(prepare({**options, "seed": seed})[0]["prompt"]) for seed in range(6)}
    assert len(found) > 1
    assert prepare({**options, "seed": 1})[0]["prompt"][:] == first
    assert "Loading prepared dataset from disk" in prepare.log()
    assert not was_prepared(prepare, {**options, "seed": 1, "learning_rate": 0.5, "num_epochs": 3})


def test_prepared_data_on_another_machine(prepare, options, tmp_path, tokenizer_folder):
    """The same YAML, with copies of the files: other times, another place of the tokenizer."""
    assert was_prepared(prepare, options)
    rows = tmp_path / "rows.jsonl"
    os.utime(rows, ns=(1, 1))
    elsewhere = shutil.copytree(tokenizer_folder, tmp_path / "elsewhere")
    assert not was_prepared(prepare, {**options, "tokenizer_config": str(elsewhere)})
    rows.unlink()  # what is prepared can do without its source
    assert not was_prepared(prepare, options)


def test_a_file_of_the_same_size_and_other_contents(prepare, options, tmp_path):
    assert was_prepared(prepare, options)
    path = tmp_path / "rows.jsonl"
    path.write_text(path.read_text().replace("good", "fine"))
    assert was_prepared(prepare, options)
    assert "has changed since it was prepared" in prepare.log()


def test_code_of_the_users_that_was_edited(prepare, config, tmp_path, monkeypatch):
    code = (
        "def mine(cfg, **kwargs):\n"
        "    return lambda row: {'prompt': 'Q: ' + row['prompt'], 'chosen': 'a', 'rejected': 'b'}\n"
    )
    module = tmp_path / "a_type_of_mine.py"
    module.write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    datasets = [entry(tmp_path / "rows.jsonl", THOUGHTS, type="a_type_of_mine.mine")]
    options = {**config, "rl": "aot", "datasets": datasets}
    assert was_prepared(prepare, options)
    assert not was_prepared(prepare, options)
    module.write_text(code.replace("Q: ", "Question: "))
    assert was_prepared(prepare, options)


def test_a_new_file_in_a_folder(prepare, config, tmp_path):
    folder = tmp_path / "rows"
    folder.mkdir()
    write_jsonl(folder / "a.jsonl", make_pairs(3))
    options = {**config, "rl": "aot", "datasets": [{"path": str(folder), "type": "pairs"}]}
    assert was_prepared(prepare, options)
    assert not was_prepared(prepare, options)
    write_jsonl(folder / "b.jsonl", make_pairs(2, seed=1))
    assert len(prepare(options)[0]) == 5


def test_a_call_of_the_tokenizer_is_no_change_of_it(tokenizer_folder):
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    before = tokenizer_fingerprint(tokenizer)
    tokenizer(["cat", "dog runs"], padding=True, truncation=True, max_length=2)
    assert tokenizer_fingerprint(tokenizer) == before
    tokenizer.add_tokens(["<think>"])
    assert tokenizer_fingerprint(tokenizer) != before
