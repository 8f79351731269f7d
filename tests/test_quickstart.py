"""The first run's task, its files, and the honest counting of answers."""

import json
import re
import shutil

import pytest
import torch
import yaml
from click.testing import CliRunner
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from axolotl_aot.cli import quickstart as command
from axolotl_aot.quickstart import base_model, files, task


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ("a b c d </s>", "right"),
        ("d c b a </s>", "wrong"),
        ("a b d c </s>", "malformed"),
        ("a b c </s>", "malformed"),
        ("a b c d", "malformed"),  # goes on without an end
        ("a b c d e", "malformed"),
        ("a b </s> c d", "malformed"),
        ("</s>", "malformed"),
    ],
)
def test_kinds_of_answers(answer, kind):
    assert task.kind_of("cadb", answer) == kind


def test_held_out_problems_are_held_out():
    train, held_out = task.split_problems()
    assert len(held_out) == task.HELD_OUT
    assert not set(train) & set(held_out)
    assert len(train) + len(held_out) == 12 * 11 * 10 * 9


def test_rates_of_a_model_that_knows_only_one_answer():
    tokenizer = base_model.make_tokenizer()
    problems = task.split_problems()[1][:50]

    class Sorter(torch.nn.Module):
        """Puts all probability on the next token of the upward answer, or stops one letter early."""

        def __init__(self, length):
            super().__init__()
            self.length = length

        def forward(self, input_ids, use_cache):
            logits = torch.full((*input_ids.shape, len(tokenizer)), -1e9)
            for row, ids in enumerate(input_ids):
                words = tokenizer.decode(ids).split()
                prompt, answer = words[2:6], words[7:]
                done = len(answer) == self.length
                word = task.EOS if done or len(answer) > 3 else sorted(prompt)[len(answer)]
                logits[row, -1, tokenizer.convert_tokens_to_ids(word)] = 0
            return type("Output", (), {"logits": logits})

    assert base_model.answer_rates(Sorter(4), tokenizer, problems)["right"] == 1
    assert base_model.answer_rates(Sorter(3), tokenizer, problems)["malformed"] == 1


@pytest.mark.parametrize(
    ("answer", "score"),
    [("a b c d", 7 / 7), ("a b d c", 6 / 7), ("d c b a", 1 / 7), ("a b c", 0), ("a b c c", 0), ("", 0)],
)
def test_the_reward_of_rounds_goes_with_pairs_in_order(answer, score):
    assert task.reward("sort c a d b :", ["d c b a", answer]) == [1 / 7, score]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Two folders, written with a base model of a few steps."""
    folders = [tmp_path_factory.mktemp("quickstart") / name for name in ("one", "two")]
    for folder in folders:
        files.write_quickstart(folder, base_steps=3)
    return folders


def test_it_is_deterministic(written):
    one, two = written
    names = sorted(p.relative_to(one) for p in one.rglob("*") if p.is_file())
    assert names == sorted(p.relative_to(two) for p in two.rglob("*") if p.is_file())
    for name in names:
        first, second = (one / name).read_bytes(), (two / name).read_bytes()
        assert first == second.replace(str(two).encode(), str(one).encode()), name


def test_data_teach_the_right_answer(written):
    pairs = [
        json.loads(line) for line in (written[0] / "data" / "pairs_train.jsonl").read_text().splitlines()
    ]
    assert len(pairs) == files.ALIGNED
    for pair in pairs:
        letters = pair["prompt"].split()[1:-1]
        assert task.kind_of(letters, f"{pair['chosen'].strip()} </s>") == "right"
        assert task.kind_of(letters, f"{pair['rejected'].strip()} </s>") == "wrong"
    rows = [
        json.loads(line) for line in (written[0] / "data" / "unpaired_eval.jsonl").read_text().splitlines()
    ]
    assert 0.4 < sum(row["label"] for row in rows) / len(rows) < 0.6
    for row in rows:
        kind = task.kind_of(row["prompt"].split()[1:-1], f"{row['completion'].strip()} </s>")
        assert kind == ("right" if row["label"] else "wrong")


def test_rounds_ask_what_nothing_else_has_asked(written):
    data = written[0] / "data"
    names = ["pairs_train", "unpaired_train", "pairs_eval", "unpaired_eval"]
    asked = [
        {row["text_prompt"] for row in map(json.loads, (data / name).read_text().splitlines())}
        for name in ("prompts1.jsonl", "prompts2.jsonl")
    ]
    known = {
        row["prompt"]
        for name in names
        for row in map(json.loads, (data / f"{name}.jsonl").read_text().splitlines())
    }
    assert [len(prompts) for prompts in asked] == [files.ROUND_PROMPTS] * 2
    assert not asked[0] & asked[1] and not (asked[0] | asked[1]) & known


@pytest.mark.parametrize("method", [*files.METHODS, *files.ROUNDS])
def test_the_yamls_load(written, load, method):
    config = yaml.safe_load((written[0] / f"{method}.yml").read_text())
    cfg = load(config)
    assert cfg.test_datasets and cfg.datasets


def test_the_command_before_and_after_training(written, tmp_path):
    """With an adapter that has learnt nothing: its rates are the base model's."""
    folder = shutil.copytree(written[0], tmp_path / "run")
    result = CliRunner().invoke(command, [str(folder)])
    assert result.exit_code == 0, result.output
    shown = result.output.splitlines()
    for method in files.METHODS:
        assert f"  axolotl train {folder / method}.yml" in shown
    base = AutoModelForCausalLM.from_pretrained(folder / "base")
    get_peft_model(base, LoraConfig(target_modules=["q_proj"])).save_pretrained(folder / "outputs" / "aot")
    page = folder / "outputs" / "aot" / "dominance" / "report.html"
    page.parent.mkdir()
    page.touch()
    result = CliRunner().invoke(command, [str(folder), "--rates"])
    assert result.exit_code == 0, result.output
    rows = dict(re.findall(r"^(\w+) +(\d.*)$", result.output, re.MULTILINE))
    assert set(rows) == {"base", "aot"} and rows["aot"] == rows["base"]
    assert sum(float(rate) for rate in re.findall(r"[\d.]+", rows["base"])) == pytest.approx(100, abs=0.2)
    assert str(page) in result.output


def test_a_folder_with_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("irreplaceable")
    result = CliRunner().invoke(command, [str(tmp_path)])
    assert result.exit_code == 1
    assert "was not written by aot-quickstart" in result.output
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_rates_without_a_model_say_what_to_do(tmp_path):
    result = CliRunner().invoke(command, [str(tmp_path), "--rates"])
    assert result.exit_code == 1
    assert "run `axolotl aot-quickstart` first" in result.output
