"""Whole data sets as axolotl's commands load them: sources, counts, lengths, prepared data, labels."""

import json
import re
from collections import Counter

import pytest
from axolotl.loaders import load_tokenizer
from datasets import Dataset, DatasetDict

from axolotl_aot.data.labels import one_label_share
from axolotl_aot.dataset_hook import pipeline_of
from tests.data.entries import entry
from tests.tiny import make_pairs, unpair, write_jsonl

SCORED = {"type": "scored", "positive_above": 0.5, "negative_below": 0.3}


def scored_rows(count: int = 20) -> list[dict]:
    """Scores 0, 1 / count, ... : 6 are below 0.3 and 9 above 0.5 of 20."""
    return [{"prompt": f"cat {i}?", "completion": f"dog {i}", "score": i / count} for i in range(count)]


# --- Sources ---------------------------------------------------------------------------------------


def writers() -> dict:
    def json_array(rows, path):
        path.write_text(json.dumps(rows))

    def folder(rows, path):
        Dataset.from_list(rows).save_to_disk(str(path))

    def folder_of_files(rows, path):
        path.mkdir()
        Dataset.from_list(rows).to_parquet(str(path / "train.parquet"))

    return {
        "rows.jsonl": lambda rows, path: write_jsonl(path, rows),
        "rows.json": json_array,
        "rows.csv": lambda rows, path: Dataset.from_list(rows).to_csv(str(path)),
        "rows.parquet": lambda rows, path: Dataset.from_list(rows).to_parquet(str(path)),
        "saved_to_disk": folder,
        "a_repository": folder_of_files,
    }


@pytest.mark.parametrize("name", writers())
def test_files_and_folders_of_any_kind(prepare, config, tmp_path, name):
    path = tmp_path / name
    writers()[name](scored_rows(), path)
    train, _ = prepare({**config, "datasets": [{"path": str(path), **SCORED}]})
    assert Counter(train["label"]) == {True: 9, False: 6}


def test_a_split_of_a_source(prepare, config, tmp_path):
    path = tmp_path / "rows.jsonl"
    train, _ = prepare({**config, "datasets": [entry(path, scored_rows(), split="train[3:15]", **SCORED)]})
    assert Counter(train["label"]) == {True: 4, False: 3}


def test_shards_are_parts_of_a_source(prepare, config, tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": "a", "completion": str(i), "label": i % 2} for i in range(11)]
    found = []
    for index in range(3):
        shard = entry(path, rows, type="chat_template", shards=3, shards_idx=index)
        train, _ = prepare({**config, "datasets": [shard]})
        found.append(len(train))
    assert found == [4, 4, 3]
    # rows are numbered as in the file
    broken = [*rows[:9], {**rows[9], "label": "meh"}, rows[10]]
    with pytest.raises(ValueError, match="row 10: field `label`: the label 'meh'"):
        prepare({**config, "datasets": [entry(path, broken, type="chat_template", shards=3, shards_idx=2)]})
    with pytest.raises(ValueError, match="`shards_idx: 3` must be less than `shards: 3`"):
        prepare({**config, "datasets": [entry(path, rows, type="chat_template", shards=3, shards_idx=3)]})


def test_types_mix_in_one_run(prepare, config, tmp_path):
    pairs = make_pairs(3)
    datasets = [
        entry(tmp_path / "scored.jsonl", scored_rows(), **SCORED),
        entry(tmp_path / "pairs.jsonl", pairs, type="pairs"),
        entry(tmp_path / "kto.jsonl", unpair(pairs), type="chatml.ultra"),
        entry(tmp_path / "good.jsonl", [{"messages": CHAT}] * 2, type="chat_template", label=True),
        entry(tmp_path / "texts.jsonl", unpair(pairs), type={"field_prompt": "prompt"}, field_weight="w")
        | {"field_weight": None},
    ]
    train, _ = prepare({**config, "datasets": datasets})
    assert Counter(train["label"]) == {True: 9 + 3 + 3 + 2 + 3, False: 6 + 3 + 3 + 3}
    assert "weight" not in train.column_names


CHAT = [{"role": "user", "content": "cat?"}, {"role": "assistant", "content": "dog"}]


def test_test_datasets_have_their_own_entries(prepare, config, tmp_path):
    train, evaluation = prepare(
        {
            **config,
            "val_set_size": None,
            "datasets": [entry(tmp_path / "pairs.jsonl", make_pairs(5), type="pairs")],
            "test_datasets": [
                entry(tmp_path / "scored.jsonl", scored_rows(), **SCORED),
                entry(tmp_path / "own.jsonl", unpair(make_pairs(2)), type={"field_prompt": "completion"}),
            ],
        }
    )
    assert Counter(train["label"]) == {True: 5, False: 5}
    assert Counter(evaluation["label"]) == {True: 9 + 2, False: 6 + 2}
    assert "test_datasets[1]" in prepare.log()


def test_a_validation_split(prepare, config, tmp_path):
    pairs = entry(tmp_path / "pairs.jsonl", make_pairs(20), type="pairs")
    train, evaluation = prepare({**config, "datasets": [pairs], "val_set_size": 0.25})
    assert (len(train), len(evaluation)) == (30, 10)
    texts = [set(zip(d["prompt"], d["completion"], strict=True)) for d in (train, evaluation)]
    assert not texts[0] & texts[1]


def test_duplicates_are_removed(prepare, config, tmp_path):
    pairs = make_pairs(4)
    path = tmp_path / "rows.jsonl"
    datasets = [entry(path, [*pairs, pairs[0], pairs[0]], type="pairs")]
    assert len(prepare({**config, "datasets": datasets})[0]) == 12
    assert len(prepare({**config, "datasets": datasets, "dataset_exact_deduplication": True})[0]) == 8


def test_runs_without_a_seed_shuffle_alike(prepare, config, tmp_path):
    pairs = entry(tmp_path / "pairs.jsonl", make_pairs(20), type="pairs")
    options = {**config, "datasets": [pairs], "skip_prepare_dataset": True}
    del options["seed"]
    first, second = (prepare(options)[0]["completion"][:] for _ in range(2))
    assert first == second
    assert first != sorted(first)


def test_several_processes_prepare_what_one_does(prepare, config, tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"cat {i}?", "completion": f"dog {i}", "label": i % 3 == 0} for i in range(4_100)]
    options = {**config, "datasets": [entry(path, rows, type="chat_template")]}
    one, two = (
        prepare({**options, "dataset_num_proc": n, "dataset_prepared_path": str(tmp_path / str(n))})[0]
        for n in (1, 2)
    )
    assert one[:] == two[:]


def test_splits_of_what_was_saved_to_the_disk(prepare, config, tmp_path):
    parts = {"train_prefs": Dataset.from_list(scored_rows(20)), "test": Dataset.from_list(scored_rows(10))}
    DatasetDict(parts).save_to_disk(str(tmp_path / "several"))
    parts["test"].save_to_disk(str(tmp_path / "one"))
    for name, split, labels in (
        ("several", "train_prefs", {True: 9, False: 6}),
        ("several", "test", {True: 4, False: 3}),
        ("several", "test[1:8]", {True: 2, False: 2}),
        ("one", "train[1:8]", {True: 2, False: 2}),
    ):
        datasets = [{"path": str(tmp_path / name), "split": split, **SCORED}]
        assert Counter(prepare({**config, "datasets": datasets})[0]["label"]) == labels
    with pytest.raises(ValueError, match="set `split:` to one of train_prefs, test"):
        prepare({**config, "datasets": [{"path": str(tmp_path / "several"), **SCORED}]})


def test_shares_are_of_all_files(prepare, config, tmp_path):
    folder = tmp_path / "rows"
    folder.mkdir()
    rows = scored_rows(20)
    write_jsonl(folder / "a.jsonl", rows[:15])
    write_jsonl(folder / "b.jsonl", rows[15:])
    options = {"type": "scored", "positive_top": 0.25, "negative_bottom": 0.25}
    files = [str(folder / name) for name in ("a.jsonl", "b.jsonl")]
    for source in ({"path": str(folder)}, {"path": str(folder), "data_files": files, "ds_type": "json"}):
        train, _ = prepare({**config, "datasets": [{**source, **options}]})
        chosen = {True: set(), False: set()}
        for row in train:
            chosen[row["label"]].add(row["completion"])
        assert {int(c.split()[1].split("<")[0]) for c in chosen[True]} == {15, 16, 17, 18, 19}
        assert {int(c.split()[1].split("<")[0]) for c in chosen[False]} == {0, 1, 2, 3, 4}


def test_conversations_in_a_csv_file(prepare, config, tmp_path):
    rows = [{"messages": json.dumps(CHAT), "label": label} for label in ("yes", "no")]
    Dataset.from_list(rows).to_csv(str(tmp_path / "rows.csv"))
    numbers = [{"prompt": "2 + 2?", "completion": n, "label": n == 4} for n in (4, 5)]
    Dataset.from_list(numbers).to_csv(str(tmp_path / "numbers.csv"))
    names = ("rows.csv", "numbers.csv")
    train, _ = prepare({**config, "datasets": [entry(tmp_path / n, type="chat_template") for n in names]})
    texts = Counter(c.split("<")[0] for c in train["completion"])
    assert texts == {"dog": 2, "4": 1, "5": 1}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"path": "nowhere.jsonl"}, r"datasets\[0\] \(nowhere.jsonl\): The dataset could not be loaded"),
        ({"path": "empty.jsonl"}, r"datasets\[0\] \(.*empty.jsonl\): "),
        ({"path": "rows.jsonl", "data_files": "x"}, "`data_files` and `name` belong to a folder"),
        ({"path": "rows.jsonl", "chat_template": "chatmll"}, r"datasets\[0\].*'chatmll' not found"),
    ],
)
def test_sources_that_cannot_be_read(prepare, config, tmp_path, monkeypatch, source, message):
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "rows.jsonl", make_pairs(2))
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(ValueError, match=message):
        prepare({**config, "datasets": [{"type": "pairs", **source}]})


# --- What becomes of rows --------------------------------------------------------------------------


def line_of(log: str, *starts: str) -> list[str]:
    """The numbers in the log's table, of the lines from one that holds `starts`."""
    lines = log.splitlines()
    at = next(i for i, line in enumerate(lines) if all(s in line for s in starts) and "bad rows" not in line)
    return [line.split() for line in lines[at : at + 2]]


def test_the_log_says_what_became_of_the_rows(prepare, config, tmp_path):
    long, longer = "dog " * 60, "dog " * 200
    rows = [
        *scored_rows(),
        {"prompt": "cat?", "completion": long, "score": 1.0},
        {"prompt": longer, "completion": "dog", "score": 0.0},
        {"prompt": "cat?", "completion": "dog", "score": None},
    ]
    scored = entry(tmp_path / "scored.jsonl", rows, **SCORED, on_bad_rows="drop")
    more = entry(tmp_path / "more.jsonl", unpair(make_pairs(2)), type="chatml.ultra")
    options = {**config, "datasets": [scored, more], "sequence_len": 60}
    for strategy, kept, expected in (
        ("drop", 19, [["23", "1", "5", "0", "positive", "9", "0", "1"], ["negative", "6", "0", "1"]]),
        ("truncate", 20, [["23", "1", "5", "0", "positive", "10", "1", "0"], ["negative", "6", "0", "1"]]),
    ):
        train, _ = prepare({**options, "excess_length_strategy": strategy})
        assert len(train) == kept
        why = "1 bad rows left out; the first is row 23: field `score` is missing or null"
        assert why in prepare.log()
        first, second = line_of(prepare.log(), "datasets[0]", "scored.jsonl")
        assert [first[2:], second] == expected
        first, _ = line_of(prepare.log(), "datasets[1]", "more.jsonl")
        assert first[2:] == ["4", "0", "0", "0", "positive", "2", "0", "0"]
        table = prepare.log().split("by entry:")[1].split("answers are positive")[0]
        # the same table where the data come from an earlier run
        again, _ = prepare({**options, "excess_length_strategy": strategy})
        assert table.splitlines()[1:4] == prepare.log().split("by entry:")[1].splitlines()[1:4]
        assert again["completion"][:] == train["completion"][:]
    with pytest.raises(
        ValueError, match=r"scored.jsonl\), row 21: \d+ tokens of prompt and \d+ of completion"
    ):
        prepare({**options, "excess_length_strategy": "raise"})


def test_bad_rows_of_a_ranking_are_all_counted(prepare, config, tmp_path):
    rows = [{"prompt": f"cat {i // 2}?", "response": f"dog {i}", "score": float(i)} for i in range(6)]
    rows[2]["score"] = None
    ranked = entry(tmp_path / "rows.jsonl", rows, type="ranked", on_bad_rows="drop")
    train, _ = prepare({**config, "datasets": [ranked]})
    assert Counter(train["label"]) == {True: 2, False: 2}
    first, _ = line_of(prepare.log(), "datasets[0]")
    assert first[2:] == ["6", "1", "1", "0", "positive", "2", "0", "0"]
    assert "the first is row 3: field `score`: None is not a finite number" in prepare.log()
    with pytest.raises(ValueError, match=r"row 3: field `score`: None.*Columns: prompt, response, score\."):
        prepare({**config, "datasets": [{**ranked, "on_bad_rows": "error"}]})


def test_truncation_keeps_the_beginning(prepare, config, tmp_path):
    rows = [{"prompt": "cat?", "completion": "dog " * n, "label": n < 9} for n in (3, 60)]
    options = {**config, "datasets": [entry(tmp_path / "rows.jsonl", rows, type="chat_template")]}
    train, _ = prepare({**options, "sequence_len": 50, "excess_length_strategy": "truncate"})
    whole, _ = prepare({**options, "sequence_len": 500})
    for cut, full in zip(*(sorted(d, key=lambda r: r["label"]) for d in (train, whole)), strict=True):
        assert cut["prompt_ids"] == full["prompt_ids"]
        assert cut["completion_ids"] == full["completion_ids"][: 50 - len(full["prompt_ids"])]
        assert full["completion"].startswith(cut["completion"])


def test_bad_rows_stop_the_run_with_their_place(prepare, config, tmp_path):
    rows = [*scored_rows(3), {"prompt": "cat?", "completion": "dog", "score": "high"}]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{**row, "score": str(row["score"])} for row in rows]))
    with pytest.raises(
        ValueError,
        match=r"datasets\[0\] \(.*rows.json\), row 1: field `score`: '0.0' is not a finite number. "
        r"Columns: prompt, completion, score. \(`on_bad_rows: drop` leaves such rows out and counts them.\)",
    ):
        prepare({**config, "datasets": [{"path": str(path), **SCORED}]})


def test_a_type_of_axolotls_that_cannot_read_a_row(prepare, config, tmp_path):
    rows = [{"question": "cat?", "completion": "dog", "label": True}]
    with pytest.raises(
        ValueError, match=r"row 1: `type: chatml.ultra` cannot read it \(KeyError: 'prompt'\)"
    ):
        prepare({**config, "datasets": [entry(tmp_path / "rows.jsonl", rows, type="chatml.ultra")]})


@pytest.mark.parametrize("kind", ["chatml.nothing", "zephyr.nectar"])
def test_a_type_that_nobody_knows(prepare, config, tmp_path, kind):
    rows = [{"prompt": "cat?", "completion": "dog", "label": True}]
    with pytest.raises(
        ValueError, match=f"`type: {kind}`: neither a type of axolotl-aot nor one that axolotl"
    ):
        prepare({**config, "datasets": [entry(tmp_path / "rows.jsonl", rows, type=kind)]})


def test_no_row_is_left(prepare, config, tmp_path):
    rows = [{"prompt": "cat?", "completion": "dog", "label": None}]
    options = {"type": "chat_template", "on_bad_rows": "drop"}
    with pytest.raises(ValueError, match="datasets: no row is left to use"):
        prepare({**config, "datasets": [entry(tmp_path / "rows.jsonl", rows, **options)]})


def test_a_custom_type_in_batches(prepare, config, tmp_path, monkeypatch):
    (tmp_path / "own_types.py").write_text(
        "def split(cfg, **kwargs):\n"
        "    def both(batch):\n"
        "        n = len(batch['q'])\n"
        "        return {'prompt': batch['q'] * 2, 'completion': batch['a'] + batch['b'],\n"
        "                'label': [True] * n + [False] * n}\n"
        "    return both, {'batched': True, 'remove_columns': '__all__'}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    rows = [{"q": f"cat {i}?", "a": "dog", "b": "bird"} for i in range(3)]
    train, _ = prepare({**config, "datasets": [entry(tmp_path / "rows.jsonl", rows, type="own_types.split")]})
    assert Counter(zip(train["completion"], train["label"], strict=True)) == {
        ("dog</s>", True): 3,
        ("bird</s>", False): 3,
    }


def test_weights_are_a_column_where_an_entry_names_one(prepare, config, tmp_path):
    pairs = make_pairs(2)
    heavy = entry(tmp_path / "heavy.jsonl", [{**p, "w": 2.5} for p in pairs], type="pairs", field_weight="w")
    light = entry(tmp_path / "light.jsonl", pairs, type="pairs")
    train, _ = prepare({**config, "datasets": [heavy, light]})
    assert Counter(train["weight"]) == {2.5: 4, 1.0: 4}
    paired, _ = prepare({**config, "rl": "aot", "datasets": [{**heavy, "type": "chat_template"}]})
    assert paired["weight"][:] == [2.5, 2.5]


# --- Prepared data ---------------------------------------------------------------------------------


def test_prepared_data_are_used_again(prepare, config, tmp_path):
    options = {**config, "datasets": [entry(tmp_path / "rows.jsonl", scored_rows(), **SCORED)]}
    for found in ("Unable to find", "Loading", "Unable to find", "Loading"):
        prepare(options)
        assert f"{found} prepared dataset" in prepare.log()
        if found == "Loading":
            options["datasets"][0]["positive_above"] = 0.6


def test_every_option_makes_other_prepared_data(load, config, tmp_path):
    base = entry(tmp_path / "rows.jsonl", scored_rows(), **SCORED)
    options = [
        {},
        {"rl": "aot", "datasets": [{**base, "type": "ranked", "positive_above": None}]},
        {"datasets": [{**base, "positive_above": 0.6}]},
        {"datasets": [{**base, "negative_below": None}]},
        {"datasets": [{**base, "field_weight": "w"}]},
        {"datasets": [{**base, "chat_template": "llama3"}]},
        {"datasets": [{**base, "on_bad_rows": "drop"}]},
        {"datasets": [{**base, "split": "train[:9]"}]},
        {"datasets": [{**base, "roles": {"user": ["customer"]}}]},
        {"excess_length_strategy": "truncate"},
        {"sequence_len": 127},
        {"chat_template": "llama3"},
        {"chat_template": "qwen3"},
        {"chat_template": "qwen3", "chat_template_kwargs": {"enable_thinking": False}},
    ]
    keys = []
    for option in options:
        option = {"datasets": [base], **option}
        option["datasets"] = [{k: v for k, v in e.items() if v is not None} for e in option["datasets"]]
        if option.get("rl") == "aot":
            option["datasets"][0].pop("negative_below")
        cfg = load({**config, **option})
        keys.append(pipeline_of(cfg, load_tokenizer(cfg)).stored_under("datasets"))
    assert len(set(keys)) == len(options)


def test_a_changed_file_is_read_again(prepare, config, tmp_path):
    path = tmp_path / "rows.jsonl"
    options = {**config, "datasets": [entry(path, make_pairs(3), type="pairs")]}
    assert len(prepare(options)[0]) == 6
    write_jsonl(path, make_pairs(5))
    assert len(prepare(options)[0]) == 10
    assert "has changed since" in prepare.log()
    path.unlink()  # prepared data need no source
    assert len(prepare(options)[0]) == 10


def test_prepared_data_beside_their_source(prepare, config, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    options = {**config, "dataset_prepared_path": str(folder / "prepared")}
    options["datasets"] = [entry(folder / "rows.jsonl", make_pairs(3), type="pairs") | {"path": str(folder)}]
    options["datasets"][0]["data_files"] = str(folder / "rows.jsonl")
    prepare(options)
    prepare(options)
    assert "Loading prepared dataset from disk" in prepare.log()
    write_jsonl(folder / "rows.jsonl", make_pairs(4))
    assert len(prepare(options)[0]) == 8


def test_prepared_data_that_were_not_written_to_their_end(prepare, config, tmp_path):
    options = {**config, "datasets": [entry(tmp_path / "rows.jsonl", make_pairs(3), type="pairs")]}
    prepare(options)
    (record,) = (tmp_path / "prepared").rglob("aot_record.json")
    record.unlink()
    prepare(options)
    assert "Unable to find" not in prepare.log() and "by entry" in prepare.log()
    assert record.exists()


def test_weights_of_one_set_are_for_the_other_too(prepare, config, tmp_path):
    pairs = make_pairs(2)
    heavy = entry(tmp_path / "heavy.jsonl", [{**p, "w": 2.5} for p in pairs], type="pairs", field_weight="w")
    light = entry(tmp_path / "light.jsonl", pairs, type="pairs")
    for datasets, test_datasets in (([heavy], [light]), ([light], [heavy])):
        keys = {"datasets": datasets, "test_datasets": test_datasets, "val_set_size": None}
        weights = [d["weight"][:] for d in prepare({**config, **keys})]
        assert sorted(weights) == [[1.0] * 4, [2.5] * 4]


# --- Labels ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("label", "absent"), [(True, "negative"), (False, "positive")])
def test_data_with_one_label_only_are_refused(prepare, config, tmp_path, label, absent):
    rows = unpair(make_pairs(8), only=label)
    with pytest.raises(ValueError, match=f"datasets: no {absent} answer among 8"):
        prepare({**config, "datasets": [entry(tmp_path / "rows.jsonl", rows, type="chat_template")]})


def test_an_evaluation_set_with_one_label_only_is_refused(prepare, config, tmp_path):
    rows = [{"prompt": f"cat {i}?", "completion": "dog", "label": i % 2} for i in range(16)]
    answers = entry(tmp_path / "rows.jsonl", rows, type="chat_template")
    with pytest.raises(ValueError, match=r"val_set_size: no (positive|negative) answer among 1"):
        prepare({**config, "datasets": [answers], "val_set_size": 1 / 16})


@pytest.mark.parametrize(
    ("batch", "options", "warning"),
    [
        (4, {}, None),
        (4, {"aot_stratify": False}, "about 32% of the batches.*enlarge .* or set `aot_stratify: true`"),
        (2, {}, "about 50% of the batches that are sorted will hold answers of one label only"),
        (2, {"aot_scope": "micro_batch", "gradient_accumulation_steps": 2}, "about 50% of the batches"),
    ],
)
def test_a_warning_where_batches_would_often_hold_one_label(
    prepare, config, tmp_path, batch, options, warning
):
    rows = [{"prompt": "cat?", "completion": f"dog {i}", "label": i < 20} for i in range(80)]
    datasets = [entry(tmp_path / "rows.jsonl", rows, type="chat_template")]
    prepare({**config, "micro_batch_size": batch, "datasets": datasets, **options})
    assert "20 of 80 answers are positive (25.0%)" in prepare.log()
    if warning is None:
        assert "of one label only" not in prepare.log()
    else:
        assert re.search(warning, prepare.log())


def test_the_share_of_batches_of_one_label():
    assert one_label_share(20, 60, 4, stratified=False) == pytest.approx(0.25**4 + 0.75**4)
    assert one_label_share(20, 60, 4, stratified=True) == 0  # 20 batches, a positive for each
    assert one_label_share(10, 70, 4, stratified=True) == 0.5
