"""`val_set_size` keeps the answers of a prompt together."""

import pytest

from axolotl_aot.data.mapping import PROMPT
from tests.data.entries import entry
from tests.tiny import make_pairs, unpair

CHAT = {"type": "chat_template"}


def messages(i: int) -> list[dict]:
    return [{"role": "system", "content": "be kind"}, {"role": "user", "content": f"cat {i}?"}]


RATED = [
    {"prompt": f"cat {i}?", "response": f"dog {j}", "helpfulness": float(j)}
    for i in range(12)
    for j in range(3)
]
# rl, rows and entry, each with several answers a prompt
SEVERAL = {
    "pairs": ("aot_unpaired", make_pairs(20), {"type": "pairs"}),
    "several pairs": (
        "aot",
        [{**pair, "prompt": f"cat {i // 4}?"} for i, pair in enumerate(make_pairs(40))],
        CHAT,
    ),
    "answers": ("aot_unpaired", unpair(make_pairs(20)), CHAT),
    "ranked": ("aot_unpaired", RATED, {"type": "ranked", "field_score": "helpfulness"}),
    "scored": (
        "aot_unpaired",
        [{**row, "completion": row["response"]} for row in RATED],
        {"type": "scored", "field_score": "helpfulness", "positive_above": 1, "negative_below": 1},
    ),
    "axolotl's": ("aot_unpaired", unpair(make_pairs(20)), {"type": "chatml.ultra"}),
    "conversations": (
        "aot_unpaired",
        [{"messages": messages(i // 3), "completion": f"dog {i}", "label": i % 3 > 0} for i in range(30)],
        CHAT,
    ),
}


@pytest.mark.parametrize("name", SEVERAL)
def test_no_prompt_is_on_both_sides(prepare, config, tmp_path, name):
    rl, rows, options = SEVERAL[name]
    datasets = [entry(tmp_path / "rows.jsonl", rows, **options)]
    whole, _ = prepare({**config, "rl": rl, "datasets": datasets})
    train, evaluation = prepare({**config, "rl": rl, "datasets": datasets, "val_set_size": 0.25})
    prompts = [set(side["prompt"]) for side in (train, evaluation)]
    assert not prompts[0] & prompts[1]
    assert len(train) + len(evaluation) == len(whole)
    largest = max(whole["prompt"].count(prompt) for prompt in prompts[1])
    assert 0.25 * len(whole) - largest < len(evaluation) <= 0.25 * len(whole)
    assert PROMPT not in train.column_names and PROMPT not in evaluation.column_names
    said = (
        f"val_set_size: 0.25: {len(evaluation)} rows of {len(prompts[1])} prompts for evaluation, "
        f"{len(train)} rows of {len(prompts[0])} prompts for training"
    )
    assert said in prepare.log()
    # the same again, from what was kept
    again = prepare({**config, "rl": rl, "datasets": datasets, "val_set_size": 0.25})
    assert [side["prompt"][:] for side in again] == [side["prompt"][:] for side in (train, evaluation)]


@pytest.mark.parametrize("size", [0.3, 0.21, 3, 1, 9])
def test_prompts_of_their_own_are_split_as_axolotl_does(prepare, config, tmp_path, size):
    rows = [{"prompt": f"cat {i}?", "chosen": "a", "rejected": "b"} for i in range(10)]
    datasets = [entry(tmp_path / "rows.jsonl", rows, type="pairs")]
    whole, _ = prepare({**config, "rl": "aot", "datasets": datasets})
    found = prepare({**config, "rl": "aot", "datasets": datasets, "val_set_size": size})
    expected = whole.train_test_split(test_size=size, shuffle=False)
    assert [side["prompt"][:] for side in found] == [expected[n]["prompt"][:] for n in ("train", "test")]


def test_a_prompt_with_more_answers_than_are_wanted(prepare, config, tmp_path):
    rows = [
        {"prompt": p, "chosen": f"{i}", "rejected": "b"}
        for p, n in (("a", 5), ("b", 2), ("c", 6))
        for i in range(n)
    ]
    datasets = [entry(tmp_path / "rows.jsonl", rows, type="pairs")]
    _, evaluation = prepare({**config, "rl": "aot", "datasets": datasets, "val_set_size": 1})
    assert len(evaluation) == 2


@pytest.mark.parametrize(
    ("rows", "size", "message"),
    [
        (
            [{"prompt": "a", "chosen": f"{i}", "rejected": "b"} for i in range(6)],
            0.5,
            "answer the same prompt",
        ),
        ([{"prompt": f"{i}", "chosen": "a", "rejected": "b"} for i in range(6)], 6, "leaves none for one"),
    ],
)
def test_splits_that_cannot_be(prepare, config, tmp_path, rows, size, message):
    datasets = [entry(tmp_path / "rows.jsonl", rows, type="pairs")]
    with pytest.raises(ValueError, match=f"`val_set_size: {size}`.*{message}"):
        prepare({**config, "rl": "aot", "datasets": datasets, "val_set_size": size})


def test_an_evaluation_set_of_the_users_that_shares_prompts(prepare, config, tmp_path):
    pairs = make_pairs(6)
    datasets = [entry(tmp_path / "train.jsonl", pairs, type="pairs")]
    shared = [entry(tmp_path / "shared.jsonl", [*pairs[:2], *make_pairs(3, seed=1)], type="pairs")]
    other = [entry(tmp_path / "other.jsonl", make_pairs(3, seed=1), type="pairs")]
    options = {**config, "rl": "aot", "datasets": datasets, "val_set_size": None}
    prepare({**options, "test_datasets": shared})
    assert "test_datasets: 2 of its 5 prompts are in `datasets`, too" in prepare.log()
    prepare({**options, "test_datasets": other})
    assert "prompts are in `datasets`" not in prepare.log()
