"""Entries of `datasets:`: which options a type takes, and what the messages say of the others."""

import pytest

from axolotl_aot.data.types import TYPES, parse
from axolotl_aot.errors import AOTDataError

SCORED = {"path": "a.jsonl", "type": "scored", "positive_above": 0.5}


def test_each_type_takes_its_options():
    entry = parse("aot_unpaired", {**SCORED, "negative_below": 0.1, "field_weight": "w"}, "datasets[0]")
    assert (entry.positive_above, entry.negative_below, entry.field_weight) == (0.5, 0.1, "w")
    assert entry.source() == {"path": "a.jsonl"}


def test_pairs_take_the_same_options_for_both_kinds_of_training():
    options = {
        "path": "a.jsonl",
        "type": "pairs",
        "split": "train[:9]",
        "on_bad_rows": "drop",
        "field_messages": "thread",
        "field_chosen": "good",
        "field_rejected": "poor",
        "field_system": "role",
        "field_tools": "functions",
        "field_weight": "w",
        "chat_template": "llama3",
        "message_property_mappings": {"role": "who"},
        "roles": {"user": ["customer"]},
        "drop_system_message": True,
    }
    for rl in ("aot", "aot_unpaired"):
        assert parse(rl, options, "").model_dump(exclude_unset=True) == options
        with pytest.raises(AOTDataError, match="`label` is no option of `type: pairs`"):
            parse(rl, {**options, "label": True}, "")


def test_an_empty_option_is_one_that_is_not_set():
    entry = parse("aot", {"path": "a", "type": "chat_template", "roles": None, "on_bad_rows": None}, "")
    assert (entry.roles, entry.on_bad_rows) == ({}, "error")


@pytest.mark.parametrize("name", ["chat_template", "chat_template.default", "chat_template.argilla_chat"])
def test_axolotls_names_for_conversations(name):
    assert type(parse("aot", {"path": "a", "type": name}, "")) is TYPES["aot"]["chat_template"]


@pytest.mark.parametrize(
    ("rl", "entry", "message"),
    [
        (
            "aot_unpaired",
            {**SCORED, "positiv_above": 1},
            r"datasets\[0\] \(a.jsonl\): `positiv_above` is no option of `type: scored`. "
            "Did you mean 'positive_above'",
        ),
        (
            "aot_unpaired",
            {"path": "a", "type": "pairs", "positive_top": 0.3},
            "`positive_top` is no option of `type: pairs`, but of `type: scored`, `type: ranked`",
        ),
        (
            "aot_unpaired",
            {**SCORED, "label": True},
            "`label` is no option of `type: scored`, but of `type: chat_template`",
        ),
        (
            "aot_unpaired",
            {**SCORED, "xyzzy": 1},
            "`xyzzy` is no option of `type: scored`. Known: positive_above, ",
        ),
        ("aot", {"path": "a", "type": "chat_template", "label": True}, "`label` is no option"),
        (
            "aot",
            {"path": "a", "type": "scored"},
            "`type: scored` is one for `rl: aot_unpaired`; this is `rl: aot`, with the types "
            "chat_template, pairs, ranked and axolotl's own",
        ),
        ("aot_unpaired", {"path": "a", "type": "score"}, "`type: score` is not known. Did you mean 'scored'"),
        ("aot_unpaired", {"type": "pairs"}, r"datasets\[0\]: `path` is missing"),
        ("aot_unpaired", "data.jsonl", r"datasets\[0\]: expected a mapping"),
        ("aot_unpaired", {"path": "a", "type": "scored"}, "needs a threshold: positive_above"),
        ("aot_unpaired", {**SCORED, "positive_top": 0.3}, "set `positive_above` or `positive_top`, not both"),
        ("aot_unpaired", {**SCORED, "negative_below": 0.7}, "`positive_above: 0.5` lies below"),
        (
            "aot_unpaired",
            {"path": "a", "type": "scored", "positive_top": 0.7, "negative_bottom": 0.4},
            "their sum must not exceed 1",
        ),
        ("aot_unpaired", {**SCORED, "positive_above": "high"}, "`positive_above: high`: input should be a"),
        (
            "aot_unpaired",
            {**SCORED, "on_bad_rows": "skip"},
            "`on_bad_rows: skip`: input should be 'error' or",
        ),
        ("aot_unpaired", {**SCORED, "shards": 0}, "`shards: 0`: input should be greater than or equal to 1"),
        (
            "aot_unpaired",
            {"path": "a", "type": "chat_template", "label_values": ["good"]},
            r"`label_values: \['good'\]`: write `label_values: {positive: ",
        ),
        (
            "aot_unpaired",
            {"path": "a", "type": "chat_template", "label_values": {"positive": ["good"]}},
            "`label_values.negative: .*field required",
        ),
        ("aot_unpaired", {**SCORED, "shards_idx": 1}, "`shards_idx: 1` needs `shards`"),
        ("aot_unpaired", {**SCORED, "ds_type": "pandas"}, "`ds_type: pandas` reads pickles"),
        (
            "aot_unpaired",
            {"path": "a", "type": "ranked", "field_score": "s", "field_rank": "r"},
            "set `field_score` or `field_rank`, not both",
        ),
        (
            "aot_unpaired",
            {"path": "a", "type": "chat_template", "label": True, "field_label": "l"},
            "`label: true` and `field_label`: the label is either",
        ),
        (
            "aot_unpaired",
            {
                "path": "a",
                "type": "chat_template",
                "label_values": {"positive": ["Good"], "negative": ["good"]},
            },
            "good: positive and negative at once",
        ),
        (
            "aot_unpaired",
            {"path": "a", "type": {"field_promt": "q"}},
            "`type: field_promt`: not a key of a user-defined type; known: completion_format, ",
        ),
    ],
)
def test_a_wrong_entry_is_named(rl, entry, message):
    with pytest.raises(AOTDataError, match=message):
        parse(rl, entry, "datasets[0]")


def test_a_wrong_option_stops_before_a_model_is_loaded(load, unpaired_config):
    unpaired_config["datasets"][0] |= {"typ": "pairs"}
    with pytest.raises(AOTDataError, match=r"datasets\[0\].*`typ` is no option.*'type'"):
        load({**unpaired_config, "base_model": "/nowhere"})


def test_all_options_survive_axolotls_validation(load, unpaired_config):
    entry = {**SCORED, "shards": 2, "name": "x", "ds_type": "json", "roles": {"user": ["customer"]}}
    cfg = load({**unpaired_config, "datasets": [entry], "test_datasets": [entry], "val_set_size": None})
    assert cfg.aot_entries.to_dict() == {"datasets": [entry], "test_datasets": [entry]}


def test_the_plugins_own_key_is_not_for_users(load, unpaired_config):
    with pytest.raises(ValueError, match="`aot_entries` is not a key of axolotl-aot"):
        load({**unpaired_config, "aot_entries": {}})
