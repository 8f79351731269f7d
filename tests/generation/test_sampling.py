"""`axolotl aot-sample`: what it writes, read again by training; interrupted jobs; what it refuses."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
import yaml
from axolotl.common.datasets import load_preference_datasets
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForSequenceClassification,
)

from axolotl_aot.generation import engines
from tests.generation.conftest import QUESTIONS
from tests.marks import slow_except
from tests.processes import AXOLOTL, ENVIRONMENT
from tests.tiny import write_jsonl

COUNT = 7  # prompts
# a reward that keeps a copy of the unfinished file, which holds the sampled tokens
REWARD = """
import shutil

def length(prompt, answers):
    shutil.copy("answers.jsonl.partial", "copy.partial")
    return [float(len(answer)) for answer in answers]
"""


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def lines_of(output: str) -> str:
    return " ".join(output.split())


@pytest.fixture
def prompts(tmp_path) -> Path:
    rows = [{"prompt": question} for question in QUESTIONS[5 : 12 * COUNT : 12]]
    return write_jsonl(tmp_path / "prompts.jsonl", rows)


@pytest.fixture
def reward(tmp_path) -> str:
    (tmp_path / "reward.py").write_text(REWARD)
    return "reward.py:length"


@pytest.fixture
def adapter(speaker, tmp_path) -> Path:
    """An adapter that makes another model of the speaker."""
    folder = tmp_path / "adapter"
    torch.manual_seed(1)
    lora = LoraConfig(r=4, target_modules=["q_proj", "down_proj"])
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(speaker), lora)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.5)
    model.save_pretrained(folder)
    return folder


def sampled_tokens(path: Path) -> list[list[int]]:
    """All sampled answers in an unfinished file."""
    return [ids for line in rows_of(path) if "batch" in line for ids, _ in line["answers"]]


# --- What is written -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["chat", "text"])
def test_training_reads_the_sampled_tokens(request, call, load, kind, prompts, reward, tmp_path):
    config = request.getfixturevalue(kind)
    result, out = call(config, prompts, "--reward", reward, "--n", 6, "--batch-size", 8)
    assert result.exit_code == 0, result.output
    rows = rows_of(out)
    assert len(rows) == COUNT and not out.with_name("answers.jsonl.partial").exists()
    assert f"datasets: [{{path: {out}, type: ranked}}]" in result.output
    tokenizer = AutoTokenizer.from_pretrained(config["base_model"])
    tail = tokenizer("\n", add_special_tokens=False)["input_ids"] if kind == "chat" else []
    sampled = {tuple(ids + tail) for ids in sampled_tokens(tmp_path / "copy.partial")}
    faithful = {(answer, row["as_sampled"][i]) for row in rows for i, answer in enumerate(row["completions"])}
    assert sum(same for _, same in faithful) > COUNT

    # all answers are used: the median splits them into two labels
    scores = sorted(score for row in rows for score in row["scores"])
    entry = {"path": str(out), "type": "ranked"}
    cut = dict.fromkeys(("positive_above", "negative_below"), scores[len(scores) // 2] - 0.5)
    for rl, more, columns in (
        ("aot_unpaired", cut, ["completion"]),
        ("aot_unpaired", {}, ["completion"]),
        ("aot", {}, ["chosen", "rejected"]),
    ):
        cfg = load({**config, "rl": rl, "datasets": [{**entry, **more}], "dataset_prepared_path": None})
        data = load_preference_datasets(cfg=cfg).train_dataset
        for column in columns:
            for text, ids in zip(data[column], data[f"{column}_ids"], strict=True):
                answer = text.removesuffix("<|im_end|>\n").removesuffix("</s>")
                assert (tuple(ids) in sampled) is ((answer, True) in faithful), answer
    labels = {
        (text, label)
        for row in rows
        for text, score in zip(row["completions"], row["scores"], strict=True)
        for label in ([True] if score == max(row["scores"]) else [])
    }
    best = {text for text, _ in labels}
    assert {text.removesuffix("<|im_end|>\n").removesuffix("</s>") for text in data["chosen"]} <= best


def test_rows_say_what_made_them(call, chat, prompts, reward, speaker):
    options = ("--n", 3, "--temperature", 0.8, "--top-p", 0.9, "--max-new-tokens", 2, "--seed", 7)
    result, out = call(chat, prompts, "--reward", reward, *options)
    assert result.exit_code == 0, result.output
    rows = rows_of(out)
    asked = [row["prompt"] for row in rows_of(prompts)]
    assert [row["messages"] for row in rows] == [[{"role": "user", "content": text}] for text in asked]
    origin = rows[0]["sampled_from"]
    assert (
        origin.items()
        >= {
            "model": str(speaker),
            "adapter": None,
            "n": 3,
            "seed": 7,
            "temperature": 0.8,
            "top_p": 0.9,
            "max_new_tokens": 2,
            "reward": reward,
        }.items()
    )
    for row in rows:
        assert row["scores"] == [len(answer) for answer in row["completions"]]
        assert len(row["completions"]) == len(row["finished"]) == len(row["as_sampled"]) <= 3
    unfinished = sum(not finished for row in rows for finished in row["finished"])
    assert unfinished and f"{unfinished} answers" in result.output and "did not end" in result.output
    equal = sum(len(set(row["scores"])) == 1 for row in rows)
    assert (f"{equal} of the prompts have equal scores" in result.output) is bool(equal)


@pytest.mark.parametrize("rl", slow_except(["aot"], ["aot", "aot_unpaired"]))
def test_answers_without_scores_are_no_ranking(call, load, chat, prompts, rl):
    result, out = call(chat, prompts, "--n", 2)
    assert result.exit_code == 0, result.output
    assert all(len(row["unscored_completions"]) == 2 and "scores" not in row for row in rows_of(out))
    entry = {"path": str(out), "type": "ranked"}
    cfg = load({**chat, "rl": rl, "datasets": [entry], "dataset_prepared_path": None})
    with pytest.raises(ValueError, match=r"finds neither a column with .*unscored_completions"):
        load_preference_datasets(cfg=cfg)


def test_system_messages_and_tools_are_rendered_again_as_they_were(call, load, chat, tmp_path, reward):
    template = tmp_path / "template.jinja"
    template.write_text(
        "{% if tools %}<|im_start|>tools\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] or (m['tool_calls'] | tojson) }}"
        "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tool = {"name": "find", "parameters": {"type": "object", "properties": {"what": {"type": "string"}}}}
    called = {"function": {"name": "find", "arguments": {"what": "red"}}}
    turns = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "red?"},
        {"role": "assistant", "content": None, "tool_calls": [called]},
        {"role": "tool", "content": "cat"},
    ]
    rows = [{"messages": turns, "tools": [tool]}, {"messages": turns[:2]}]
    file = write_jsonl(tmp_path / "talks.jsonl", rows)
    own = {"chat_template": "jinja", "chat_template_jinja": str(template)}
    config = {**chat, "sequence_len": 512, "datasets": [{**chat["datasets"][0], **own}]}
    result, out = call(config, file, "--reward", reward, "--max-new-tokens", 8, "--n", 8)
    assert result.exit_code == 0, result.output
    entry = {"path": str(out), "type": "ranked", **own}
    assert f"chat_template_jinja: {template}" in result.output
    cfg = load({**config, "datasets": [entry], "dataset_prepared_path": None})
    data = load_preference_datasets(cfg=cfg).train_dataset
    pairs = write_jsonl(tmp_path / "pairs.jsonl", [{**row, "chosen": "a", "rejected": "b"} for row in rows])
    entry = {"path": str(pairs), "type": "chat_template", **own}
    cfg = load({**config, "datasets": [entry], "dataset_prepared_path": None})
    expected = load_preference_datasets(cfg=cfg).train_dataset
    assert set(map(tuple, data["prompt_ids"])) <= set(map(tuple, expected["prompt_ids"]))
    assert len(data) == 2


@pytest.mark.parametrize(
    "whole", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["adapter", "whole"]
)
def test_base_and_trained_models_answer_as_themselves(call, chat, prompts, adapter, speaker, tmp_path, whole):
    from peft import PeftModel

    base = AutoModelForCausalLM.from_pretrained(speaker)
    tokenizer = AutoTokenizer.from_pretrained(speaker)
    trained = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(speaker), adapter)
    folder = adapter
    if whole:
        folder = tmp_path / "whole"
        trained = trained.merge_and_unload()
        trained.save_pretrained(folder)
    found = []
    for model, options in ((base, ["--base"]), (trained, ["--adapter", folder])):
        greedy = ("--temperature", 0, "--n", 1, "--max-new-tokens", 6)
        result, out = call(chat, prompts, *options, *greedy, base=False, out=f"{len(found)}.jsonl")
        assert result.exit_code == 0, result.output
        for row in rows_of(out):
            text = tokenizer.apply_chat_template(row["messages"], add_generation_prompt=True, tokenize=False)
            ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
            for _ in range(6):
                logits = model(input_ids=ids, use_cache=False).logits[0, -1]
                ids = torch.cat([ids, logits.argmax()[None, None]], dim=1)
                if tokenizer.decode(ids[0, -1]) in ("<|im_end|>", "</s>"):
                    break
            (answer,) = row["unscored_completions"]
            assert tokenizer.decode(ids[0]).removeprefix(text).removesuffix("<|im_end|>") == answer
        found.append([row["unscored_completions"] for row in rows_of(out)])
    assert found[0] != found[1]


# --- Interrupted ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [("--n", 5), pytest.param(("--n", 1, "--temperature", 0), marks=pytest.mark.slow)],
    ids=["seeded", "greedy"],
)
def test_a_job_that_was_cut_anywhere_ends_with_the_same_file(call, chat, prompts, reward, tmp_path, options):
    arguments = (chat, prompts, "--reward", reward, "--batch-size", 4, *options)
    result, out = call(*arguments)
    assert result.exit_code == 0, result.output
    undisturbed, partial = out.read_bytes(), out.with_name("answers.jsonl.partial")
    content = (tmp_path / "copy.partial").read_bytes()
    ends = [i for i, byte in enumerate(content) if byte == ord("\n")]
    for cut in (ends[0] + 20, ends[len(ends) // 2] + 1, len(content) - 3):
        out.unlink()
        partial.write_bytes(content[:cut])
        result, _ = call(*arguments)
        assert result.exit_code == 0, result.output
        assert out.read_bytes() == undisturbed, cut


@pytest.mark.slow
def test_a_job_that_is_killed_at_random_moments(call, chat, prompts, reward, tmp_path):
    arguments = (chat, prompts, "--reward", reward, "--batch-size", 2, "--n", 6)
    result, out = call(*arguments)
    undisturbed, partial = out.read_bytes(), out.with_name("answers.jsonl.partial")
    out.unlink()
    killed = 0
    for moment in range(1, 40):
        if (child := os.fork()) == 0:
            result, _ = call(*arguments)
            os._exit(result.exit_code)
        before = partial.stat().st_size if partial.exists() else 0
        while os.waitpid(child, os.WNOHANG) == (0, 0):
            if partial.exists() and partial.stat().st_size > before + 60 * (moment % 3):
                time.sleep(0.003 * (moment % 5))
                os.kill(child, signal.SIGKILL)
                _, status = os.waitpid(child, 0)
                killed += os.waitstatus_to_exitcode(status) == -signal.SIGKILL
                break
            time.sleep(0.001)
        else:
            break
    if not out.exists():
        result, _ = call(*arguments)
        assert result.exit_code == 0, result.output
    assert killed > 3
    assert out.read_bytes() == undisturbed


def test_a_mended_reward_goes_on_without_sampling_again(call, chat, prompts, reward, tmp_path):
    bad = REWARD.replace("return [", "if 'two' in prompt[0]['content']: return None\n    return [")
    result, expected = call(chat, prompts, "--reward", reward)
    good = expected.read_bytes()
    (tmp_path / "reward.py").write_text(bad)
    result, out = call(chat, prompts, "--reward", reward, "--overwrite")
    assert result.exit_code == 1 and "gives None" in result.output
    partial = out.with_name("answers.jsonl.partial")
    before = [line for line in rows_of(partial) if "batch" in line]
    assert before
    (tmp_path / "reward.py").write_text(REWARD)
    result, out = call(chat, prompts, "--reward", reward)
    assert result.exit_code == 0, result.output
    kept = [line for line in rows_of(tmp_path / "copy.partial") if "batch" in line]
    assert kept[: len(before)] == before
    assert out.read_bytes() == good


def test_a_partial_file_of_another_command_is_named(call, chat, prompts, adapter, tmp_path):
    (tmp_path / "reward.py").write_text("def fails(prompt, answers): raise KeyError('x')")
    arguments = (chat, prompts, "--reward", "reward.py:fails")
    result, out = call(*arguments)
    assert result.exit_code == 1 and "KeyError: 'x'" in result.output
    partial = out.with_name("answers.jsonl.partial")
    kept = partial.read_bytes()
    for options, differs in (
        (("--seed", 1), "seed (42 there, 1 now)"),
        (("--n", 3), "n (4 there, 3 now)"),
        (("--temperature", 0.5), "temperature (1.0 there, 0.5 now)"),
        (("--batch-size", 3), "batch_size (4 there, 3 now)"),
    ):
        result, _ = call(*arguments, *options)
        assert result.exit_code == 1 and differs in lines_of(result.output), result.output
        assert "--overwrite" in result.output and partial.read_bytes() == kept
    result, _ = call(*arguments, "--adapter", adapter, base=False)
    assert "adapter (None there" in result.output
    other = write_jsonl(tmp_path / "other.jsonl", [{"prompt": "red cat?"}])
    result, _ = call(chat, other, *arguments[2:])
    assert "prompts (7 with" in result.output
    partial.write_bytes(kept[:40] + b"\n" + kept[40:])
    result, _ = call(*arguments)
    assert "line 1 is damaged" in lines_of(result.output)
    result, _ = call(chat, prompts, "--overwrite")
    assert result.exit_code == 0, result.output
    assert out.exists() and not partial.exists()


def test_any_command_may_begin_where_nothing_is_kept(call, chat, prompts, monkeypatch):
    """A batch that does not fit into memory is the first one; the next command has another --batch-size."""
    tried = []

    def generate(model, sequences, *args, **kwargs):
        tried.append(len(sequences))
        if len(sequences) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has")
        return original(model, sequences, *args, **kwargs)

    original = engines.generate
    monkeypatch.setattr(engines, "generate", generate)
    result, out = call(chat, prompts, "--batch-size", 7)
    message = "7 sequences at once do not fit into memory (CUDA out of memory): set --batch-size 3 or less"
    assert result.exit_code == 1 and message in lines_of(result.output), result.output
    result, _ = call(chat, prompts, "--batch-size", 3)
    assert result.exit_code == 0, result.output
    assert out.exists() and tried[0] == 7 and set(tried[1:]) <= {1, 2, 3}


# --- Rewards -------------------------------------------------------------------------------------

BAD_REWARDS = {
    "nan": ("return [float('nan')] * len(answers)", r"prompt 1 \('.*'\), answer 1 \('.*'\): gives nan"),
    "infinite": ("return [0.0, float('inf')] * len(answers)", "gives 8 numbers for 4 answers"),
    "infinite one": ("return [0.0, float('-inf'), 0.0, 1.0]", r"answer 2 \('.*'\): gives -inf"),
    "none": ("return None", "gives None, and must give a list of 4 numbers"),
    "a none": (
        "return [1.0, None, 1.0, 1.0]",
        r"answer 2 \('.*'\): gives None, which is not",
    ),
    "text": ("return '1234'", "gives '1234', and must give a list"),
    "a text": ("return [1.0, 1.0, '1', 1.0]", r"answer 3 \('.*'\): gives '1'"),
    "too few": ("return [1.0]", "gives 1 numbers for 4 answers"),
    "a number": ("return 1.0", "gives 1.0, and must give a list"),
    "bool": ("return [True] * 4", "gives True, which is no number; write 1.0"),
    "complex": ("return [1j] * 4", "gives 1j"),
    "a list": ("return [[1.0]] * 4", r"gives \[1.0\]"),
    "a mapping": ("return {0: 1.0}", "must give a list"),
    "an exception": ("raise RuntimeError('no judge')", r"prompt 1 .*answers '.*RuntimeError: no judge"),
    "an assertion": ("assert not answers", "AssertionError"),
    "a syntax error": ("return [", "reward.py cannot be imported .*SyntaxError"),
    "a matrix": ("import numpy; return numpy.ones((4, 2))", "gives \\["),
}


@pytest.mark.parametrize("name", BAD_REWARDS)
def test_bad_rewards_are_named(name):
    from axolotl_aot.data.prompts import Prompt
    from axolotl_aot.errors import AOTConfigError, AOTDataError
    from axolotl_aot.generation.rewards import FunctionReward, scores_of

    body, message = BAD_REWARDS[name]
    Path("reward.py").write_text(f"def score(prompt, answers):\n    {body}\n")
    prompt = Prompt(1, [{"role": "user", "content": "red?"}], None, "user\nred?", [1], "", "</s>")
    with pytest.raises((AOTConfigError, AOTDataError), match=message):
        scores_of(FunctionReward("reward.py:score"), prompt, ["a", "b", "c", "d"])


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("score", "write package.module:function or path/to/file.py:function"),
        (":score", "write package.module"),
        ("nowhere.py:score", "there is no file nowhere.py"),
        ("no.such.module:score", "no.such.module cannot be imported .*ModuleNotFoundError"),
        ("good.py:scores", "good.py has no 'scores'. Did you mean 'score'"),
        ("good.py:NUMBER", "'NUMBER' is int, and must be a function"),
    ],
)
def test_rewards_that_are_no_function(name, message):
    from axolotl_aot.errors import AOTConfigError
    from axolotl_aot.generation.rewards import FunctionReward

    Path("good.py").write_text("NUMBER = 1\ndef score(prompt, answers):\n    return [1.0] * len(answers)\n")
    with pytest.raises(AOTConfigError, match=message):
        FunctionReward(name)


def test_numbers_of_other_kinds_are_numbers():
    from axolotl_aot.data.prompts import Prompt
    from axolotl_aot.generation.rewards import FunctionReward, scores_of

    prompt = Prompt(1, "red?", None, "red?", [1], "", "</s>")
    for made in ("numpy.array([1, 2])", "torch.tensor([1.0, 2.0])", "(1, 2)", "[numpy.float32(1), 2]"):
        Path("reward.py").write_text(f"import numpy, torch\ndef score(prompt, answers):\n    return {made}\n")
        assert scores_of(FunctionReward("reward.py:score"), prompt, ["a", "b"]) == [1.0, 2.0]


@pytest.fixture
def judge(speaker, tmp_path) -> Path:
    """A reward model with random weights."""
    folder = tmp_path / "judge"
    tokenizer = AutoTokenizer.from_pretrained(speaker)
    torch.manual_seed(3)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        num_labels=1,
        pad_token_id=tokenizer.pad_token_id,
        max_position_embeddings=200,
        **sizes,
    )
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", slow_except(["chat"], ["chat", "text"]))
def test_a_reward_model_scores_each_answer(request, call, kind, prompts, judge):
    result, out = call(request.getfixturevalue(kind), prompts, "--reward-model", judge, "--batch-size", 3)
    assert result.exit_code == 0, result.output
    tokenizer = AutoTokenizer.from_pretrained(judge)
    model = LlamaForSequenceClassification.from_pretrained(judge)
    for row in rows_of(out):
        for answer, score in zip(row["completions"], row["scores"], strict=True):
            if kind == "chat":
                messages = [*row["messages"], {"role": "assistant", "content": answer}]
                text = tokenizer.apply_chat_template(messages, tokenize=False)
            else:
                text = "<s>" + row["text_prompt"] + answer
            ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
            assert score == pytest.approx(model(input_ids=ids).logits.item(), abs=1e-5)


# --- What is refused -----------------------------------------------------------------------------


def test_a_reward_models_own_code_is_not_run(judge, tmp_path):
    from axolotl_aot.errors import AOTConfigError
    from axolotl_aot.generation.reward_model import ModelReward

    ran = tmp_path / "ran"
    (judge / "own.py").write_text(f"open({str(ran)!r}, 'w').close()\n")
    code = {"AutoConfig": "own.Own", "AutoModelForSequenceClassification": "own.Own"}
    config = judge / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "model_type": "own", "auto_map": code}))
    with pytest.raises(AOTConfigError, match="cannot be loaded"):
        ModelReward(str(judge), 1)
    assert not ran.exists()


@pytest.mark.parametrize(
    ("keys", "options", "message"),
    [
        ({"rl": "orpo"}, (), "`rl: orpo`: answers are sampled from runs of aot, aot_unpaired, dpo"),
        ({"datasets": None}, (), "`datasets` is missing: its first entry says how prompts are read"),
        ({}, ("--adapter", "."), "--base and --adapter .: the answers are of the untrained model"),
        ({}, ("--temperature", 0), "--temperature 0 with --n 4"),
        ({}, ("--temperature", 0, "--n", 1, "--top-p", 0.5), "--temperature 0 with --top-p 0.5"),
        ({}, ("--temperature", -1), "-1"),
        ({}, ("--top-p", 0), "--top-p"),
        ({}, ("--n", 0), "--n"),
        ({}, ("--reward", "a:b", "--reward-model", "c"), "answers have one score"),
        ({}, ("--reward-model", "nowhere"), "--reward-model nowhere: cannot be loaded"),
        ({}, ("--engine", "vllm"), 'vLLM is not installed; pip install "axolotl[vllm]"'),
        ({}, ("--engine", "llama.cpp"), "llama.cpp"),
        ({"sequence_len": 20}, (), "--prompts: row 1 ("),
        ({"aot_penalty": "squared-hinge"}, (), "Did you mean 'squared_hinge'?"),
    ],
)
def test_mistakes_are_told_without_a_traceback(call, chat, prompts, keys, options, message):
    result, out = call({**chat, **keys}, prompts, *options)
    assert result.exit_code in (1, 2)
    assert message in lines_of(result.output), result.output
    assert not out.exists()


def test_more_that_is_refused(call, chat, prompts, judge, tmp_path, monkeypatch):
    result, _ = call(chat, prompts, base=False)
    assert "no trained adapter or model there" in lines_of(result.output) and "--base" in result.output
    result, _ = call(chat, tmp_path / "nowhere.jsonl")
    assert result.exit_code == 1 and "nowhere.jsonl" in result.output
    config = judge / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "id2label": {"0": "a", "1": "b"}}))
    result, _ = call(chat, prompts, "--reward-model", judge)
    assert result.exit_code == 1 and "--reward-model" in result.output
    (tmp_path / "answers.jsonl").write_text("mine")
    result, out = call(chat, prompts)
    assert "is there already" in result.output and out.read_text() == "mine"
    monkeypatch.setenv("WORLD_SIZE", "2")
    result, _ = call(chat, prompts, "--overwrite")
    assert "runs in one process, and here are 2" in lines_of(result.output) and out.read_text() == "mine"


@pytest.mark.parametrize("rl", slow_except(["kto"], ["dpo", "kto", "simpo"]))
def test_runs_of_other_types(call, chat, prompts, rl):
    entry = {**chat["datasets"][0], "label": True} if rl == "kto" else chat["datasets"][0]
    plugins = {"plugins": None, "remove_unused_columns": False}
    result, out = call({**chat, "rl": rl, "datasets": [entry], **plugins}, prompts, "--n", 2)
    assert result.exit_code == 0, result.output
    assert len(rows_of(out)) == COUNT


def test_4_bit_weights(call, chat, prompts, adapter, qlora):
    result, out = call({**chat, **qlora}, prompts, "--adapter", adapter, "--n", 2, base=False)
    assert result.exit_code == 0, result.output
    assert len(rows_of(out)) == COUNT and rows_of(out)[0]["sampled_from"]["adapter"] == str(adapter)


def test_ctrl_c_says_how_to_go_on(call, chat, prompts, tmp_path, caplog):
    (tmp_path / "reward.py").write_text("def score(prompt, answers): raise KeyboardInterrupt")
    result, out = call(chat, prompts, "--reward", "reward.py:score", "--batch-size", 8)
    assert result.exit_code == 1 and not out.exists()
    told = [record.getMessage() for record in caplog.records if "goes on there" in record.getMessage()]
    assert told == [f"8 of 28 answers are kept in {out}.partial; the same command, run again, goes on there"]


def test_an_unfinished_file_has_one_writer(tmp_path):
    from axolotl_aot.errors import AOTConfigError
    from axolotl_aot.generation.partial_file import PartialFile

    with (
        PartialFile(tmp_path / "a.partial", {"n": 1}),
        pytest.raises(AOTConfigError, match="another process is writing it"),
    ):
        PartialFile(tmp_path / "a.partial", {"n": 1})
    PartialFile(tmp_path / "a.partial", {"n": 1})


def test_each_batch_draws_of_its_own():
    from axolotl_aot.data.prompts import Prompt
    from axolotl_aot.generation.job import Job
    from axolotl_aot.generation.settings import Settings

    prompts = [Prompt(i + 1, "red?", None, "red?", [1] * (i + 1), "", "</s>") for i in range(5)]
    sizes = {"sequence_len": 64, "batch_size": 3, "behind": [0] * 5, "ends": {2}}
    batches = {
        seed: [job.batch(number) for number in range(len(job.batches))]
        for seed in (1, 2)
        for job in [Job(prompts, Settings(n=3, seed=seed), **sizes)]
    }
    assert len({batch.seed for of_seed in batches.values() for batch in of_seed}) == 10
    for batch in batches[1]:  # prompt and answer together take 64 tokens at most
        assert batch.decoding.max_new_tokens == 64 - max(map(len, batch.prompts))


@pytest.mark.slow
def test_the_real_command(chat, prompts, tmp_path):
    path = tmp_path / "run.yml"
    path.write_text(yaml.safe_dump(chat))
    (tmp_path / "judge.py").write_text("def score(prompt, answers): return [len(a) for a in answers]")
    words = ["--prompts", "prompts.jsonl", "--out", "answers.jsonl", "--base", "--reward", "judge:score"]
    command = [AXOLOTL, "aot-sample", "run.yml", *words]
    result = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "28 answers to 7 prompts, mean score " in result.stdout
    assert len(rows_of(tmp_path / "answers.jsonl")) == COUNT
