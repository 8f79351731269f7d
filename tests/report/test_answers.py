"""Answers before and after training in report.json and on the page, whatever their text."""

import json

import pytest
from transformers import AutoTokenizer

from axolotl_aot.generation.evaluation_prompts import EvaluationPrompts
from axolotl_aot.report.answers import answer_metrics, answers_shown, no_answers, visible
from axolotl_aot.report.page import write_report
from tests.report.test_page import Page, make_report, needs_chromium, seen_in_a_browser

HOSTILE = [
    "</pre><script>alert(1)</script>",
    "</td></tr></table><script src='http://example.org/x.js'></script>",
    "<!-- <style>body{display:none}</style> <img src=x onerror=alert(1)>",
    "\"'><svg onload=alert(1)>&lt;script&gt;",
    "{{ 7 * 7 }}{% raw %}",
    "NUL \x00, bell \x07, escape \x1b[31m, delete \x7f, \x85",
    "turned \u202egnp.exe\u202c, \u2066isolated\u2069, \u200fright",
    "zero\u200bwidth\ufeff, soft\xadhyphen, line\u2028end, \U000e0041tag",
    "x" * 10_000,
    "half a pair \ud83d",
    "",
]
HARMLESS = (
    "a\tb\nc, ünïcödé, 数, \U0001f469\u200d\U0001f680, \u0646\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"
)


def entry(texts: list[str]) -> dict:
    measures = {"length": 4.5, "ended": 0.5, "repetition": 0.25, "repeating": 0.0}
    samples = [
        {
            "prompt": text,
            "before": text,
            "after": text,
            "tokens_before": 3,
            "tokens_after": 17,
            "ended_before": True,
            "ended_after": False,
        }
        for text in texts
    ]
    after = {**measures, "length": 7.25, "ended": 1.0}
    return {"before": measures, "after": after, "max_new_tokens": 34, "samples": samples, "why_not": None}


def page_of(answers: dict, folder) -> tuple[str, Page]:
    html = write_report(folder, make_report(answers=answers)).read_text("utf-8")
    return html, Page(html)


def test_hostile_text_is_text(tmp_path):
    html, page = page_of({"aot": entry(HOSTILE)}, tmp_path)
    _, empty = page_of({"aot": entry([""] * len(HOSTILE))}, tmp_path / "empty")
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in empty.tags]
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    for text in HOSTILE[:5]:
        assert page.text.count(text) == 3
    assert page.text.count("x" * 10_000) == 3
    assert not {c for c in html if c != "\n" and not c.isprintable()}
    for code in (
        "0000",
        "0007",
        "001B",
        "007F",
        "0085",
        "202E",
        "2066",
        "200F",
        "200B",
        "FEFF",
        "00AD",
        "2028",
    ):
        assert page.text.count(f"[U+{code}]") == 3, code
    assert page.text.count("[U+D83D]") == page.text.count("[U+E0041]") == 3


@needs_chromium
def test_a_browser_shows_hostile_answers_as_text(tmp_path):
    seen = seen_in_a_browser(write_report(tmp_path, make_report(answers={"aot": entry(HOSTILE)})))
    assert seen["title"] == "Dominance report: aot"
    assert not seen["wide"]
    for text in HOSTILE[:5]:
        assert seen["cells"].count(text) == 3  # the prompt, before, after


def test_the_page_survives_the_same_texts_elsewhere(tmp_path):
    answers = [{"reward": -1.0, "prompt": text, "completion": text} for text in HOSTILE]
    report = make_report(examples={"aot": {"chosen": answers, "rejected": answers}})
    report["answers"] = {"aot": no_answers("ValueError: </p><script>alert(1)</script>\x00")}
    page = Page(write_report(tmp_path, report).read_text("utf-8"))
    assert "script" not in [tag for tag, _ in page.tags] and "[U+0000]" in page.text


def test_what_is_written_with_joiners_is_left_alone():
    assert visible(HARMLESS) == HARMLESS
    assert visible("a\u200db") == "a[U+200D]b" and visible("\u200d") == "[U+200D]"


def test_the_page_says_what_the_numbers_say(tmp_path):
    answers = entry(["the prompt"])
    _, page = page_of({"aot": answers}, tmp_path)
    text = " ".join(page.text.split())
    assert "What the model says, before and after: aot" in text
    assert "greedy answers to 1 evaluation prompts" in text
    for words in ("(cut at 34)4.57.25", "end token50%100%", "3 tokens", "17 tokens, cut", "25%25%"):
        assert words in text, words
    assert json.loads((tmp_path / "report.json").read_text())["answers"] == {"aot": answers}
    _, page = page_of({"aot": no_answers("under FSDP no process holds all weights")}, tmp_path)
    assert "There are no answers: under FSDP no process holds all weights." in page.text
    _, page = page_of({}, tmp_path)
    assert "before and after: aot" not in page.text


def test_answers_are_decoded_and_counted(tiny_model):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    end = tokenizer.eos_token_id

    def ids(text):
        return tokenizer.encode(text, add_special_tokens=False)

    asked = EvaluationPrompts([ids("red?"), ids("one cat")], 9, [end], 0)
    before, after = [[*ids(" cat"), end], ids(" dog dog")], [ids(" bird"), [end]]
    found = answers_shown(asked, before, after, tokenizer)
    first, second = found["samples"]
    assert (first["prompt"], first["before"], first["after"]) == ("red?", " cat</s>", " bird")
    assert (second["prompt"], second["before"], second["after"]) == ("one cat", " dog dog", "</s>")
    assert (first["tokens_before"], second["tokens_after"]) == (len(ids(" cat")) + 1, 1)
    assert (first["ended_before"], first["ended_after"], second["ended_after"]) == (True, False, True)
    metrics = answer_metrics(found)
    assert metrics["answers/ended"] == metrics["answers/ended_before"] == 0.5
    assert metrics["answers/length"] == pytest.approx((len(ids(" bird")) + 1) / 2)
    assert len(metrics) == 8 and answer_metrics(no_answers("for a reason")) == {}
