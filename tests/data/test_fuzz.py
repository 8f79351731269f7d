"""Whatever rows hold: each is used with exactly the tokens of its template or type, or counted."""

import json
import re
from typing import Any

import pytest
from axolotl.common.datasets import load_preference_datasets
from axolotl.loaders import load_tokenizer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.data.entries import counts_in, entry

ROWS = 12
LOOKS_LIKE_MORE = [
    "",
    " ",
    "\n\t",
    "null",
    "5",
    "[1]",
    '{"role": "user", "content": "a"}',
    "2024-05-01",
    "True",
    "§",
]
text = st.one_of(
    st.sampled_from(["cat", "dog runs", "red\nblue", " two ", *LOOKS_LIKE_MORE]),
    st.text(st.characters(codec="utf-8", exclude_characters="<\x00"), max_size=12),
)
value = st.one_of(text, text, text, st.none(), st.integers(-3, 9), st.floats(allow_nan=False), st.booleans())
label = st.sampled_from([True, False, 1, 0, -1, "good", "bad", "👍", "meh", None, 7, "2024-05-01"])


def message(role: str) -> st.SearchStrategy:
    return st.fixed_dictionaries({"role": st.just(role), "content": text})


prompt = st.one_of(value, st.lists(message("user"), min_size=1, max_size=1))
answer = st.one_of(value, message("assistant"))
# rows that are good whatever the others are, so that a data set has both labels
GOOD = {
    "aot_unpaired": [{"prompt": "cat?", "completion": "dog", "label": b} for b in (True, False)],
    "aot": [{"prompt": "cat?", "chosen": "dog", "rejected": "bird"}],
}
rows_of = {
    "aot_unpaired": st.fixed_dictionaries({"prompt": prompt, "completion": answer, "label": label}),
    "aot": st.fixed_dictionaries({"prompt": prompt, "chosen": answer, "rejected": answer}),
}
COMPLETIONS = {"aot_unpaired": ("completion",), "aot": ("chosen", "rejected")}
POSITIVE, NEGATIVE = [True, 1, "good", "👍"], [False, 0, -1, "bad"]


def is_text(given: Any) -> bool:
    return isinstance(given, str) and bool(given.strip())


def is_member(given: Any, values: list) -> bool:
    return not isinstance(given, float) and any(
        given == v and isinstance(given, str) == isinstance(v, str) for v in values
    )


def content(given: Any) -> Any:
    """The text of a prompt or an answer that is a message or a list of one."""
    given = given[0] if isinstance(given, list) else given
    return given["content"] if isinstance(given, dict) else given


def fate(rl: str, row: dict, tokenizer, kind: str) -> tuple[str, Any]:
    """By hand: "bad", "equal", or "used" with the tokens of the whole conversations."""
    parts = [content(row[name]) for name in ("prompt", *COMPLETIONS[rl])]
    if kind != "chat_template" and any(not isinstance(row[n], str) for n in ("prompt", *COMPLETIONS[rl])):
        return "bad", None
    if not all(map(is_text, parts)):
        return "bad", None
    if rl == "aot_unpaired" and not (is_member(row["label"], POSITIVE) or is_member(row["label"], NEGATIVE)):
        return "bad", None
    wholes = [whole(tokenizer, kind, parts[0], part) for part in parts[1:]]
    return ("equal", None) if rl == "aot" and wholes[0] == wholes[1] else ("used", wholes)


def whole(tokenizer, kind: str, prompt: str, answer: str) -> list[int]:
    if kind == "chat_template":
        messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
        return tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
    # axolotl's ChatML, written out, and the end token that a text gets
    written = f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|></s>"
    return tokenizer(written)["input_ids"]


@pytest.mark.parametrize("rl", ["aot", "aot_unpaired"])
@pytest.mark.parametrize("kind", ["chat_template", "chatml.prompt_pairs"])
def test_each_row_is_used_exactly_or_counted(load, config, tmp_path, caplog, rl, kind):
    path = tmp_path / "rows.jsonl"
    options = {"type": kind, "on_bad_rows": "drop"}
    configs = {**config, "rl": rl, "shuffle_merged_datasets": False, "sequence_len": 512}
    cfg = load({**configs, "datasets": [entry(path, GOOD[rl], **options)], "skip_prepare_dataset": True})
    tokenizer = load_tokenizer(cfg)

    @settings(
        max_examples=40,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    @given(st.lists(rows_of[rl], max_size=ROWS))
    def check(drawn: list[dict]) -> None:
        rows = [*GOOD[rl], *drawn]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        caplog.clear()
        found = load_preference_datasets(cfg=cfg).train_dataset
        fates = [fate(rl, row, tokenizer, kind) for row in rows]
        used = [tokens for what, tokens in fates if what == "used"]
        names = COMPLETIONS[rl]
        assert [[r["prompt_ids"] + r[f"{n}_ids"] for n in names] for r in found] == used
        if rl == "aot_unpaired":
            labels = [
                is_member(r["label"], POSITIVE)
                for r, (what, _) in zip(rows, fates, strict=True)
                if what == "used"
            ]
            assert found["label"][:] == labels
        log = "\n".join(record.getMessage() for record in caplog.records)
        counts = counts_in(log)
        bad = [number for number, (what, _) in enumerate(fates, start=1) if what == "bad"]
        equal = [number for number, (what, _) in enumerate(fates, start=1) if what == "equal"]
        assert (counts["bad"], counts["of these equal"]) == (len(bad), len(equal))
        dropped = counts["too long, dropped"]
        assert len(rows) == counts["rows"] == counts["used"] + counts["left out"] + counts["bad"] + dropped
        if bad:
            first = re.search(r"bad rows left out; the first is row (\d+): .*", log)
            assert int(first[1]) == bad[0]
            assert re.search(r"`(prompt|chosen|rejected|completion|label)", first[0])
        if equal:
            assert f"The first is row {equal[0]}." in log

    check()
