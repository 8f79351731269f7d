"""What the command is told, and what it says of what it cannot use."""

import pytest

from benchmarks.speed import cases, compare_steps, options
from benchmarks.speed.command import main


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--contenders", "nobody", "--tokens", "8"], "--tokens is read with --head"),
        (
            ["--cli", "--base-model", "/nowhere/model", "--lengths", "64"],
            "--lengths is read with no mode's option or --profile",
        ),
        (["--contenders", "our"], "Did you mean 'ours'?"),
        (["--cli", "--contenders", "TRL aot"], "unknown here"),
        (["--base-model", "m", "--vocabulary", "7"], "leave one out"),
        (["--peer-python", "/nowhere/python"], "--peer-python /nowhere/python"),
        (["--contenders", "TRL aot, peer"], "need each other"),
        (["--cases", "fixed", "--longest", "64"], "--longest is read with --lengths real"),
        (["--cases", "real", "--prompt", "0.1"], "--prompt is read with --lengths in tokens"),
        (["--steps", "0"], "0 is not above 0"),
        (["--data", "nowhere.jsonl"], "there is no file nowhere.jsonl"),
        (["--cli", "--set", "bf16"], "is no KEY=VALUE"),
        (["--cli", "--base-model", "/nowhere/model", "--set", "max_steps=3"], "give it as --steps"),
        (
            ["--cli", "--base-model", "/nowhere/model", "--set-ours", "rl=dpo"],
            "what the comparison sets itself",
        ),
        (["--cli", "--base-model", "/nowhere/model"], "--base-model /nowhere/model"),
    ],
)
def test_what_cannot_be_used_is_said(arguments, message, capsys):
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in capsys.readouterr().err


def test_options_change_the_named_cases():
    arguments = [
        "--cases",
        "fixed",
        "scope",
        "--micro-batch",
        "1",
        "2",
        "--lengths",
        "real",
        "--cached",
        "--checkpointing",
    ]
    found = compare_steps.chosen_cases(options.read_options(arguments, options.make_parser(""))[1])
    assert [(name, case.micro_batch) for name, case in found.items()] == [
        ("fixed, micro-batch 1", 1),
        ("fixed, micro-batch 2", 2),
        ("scope, micro-batch 1", 1),
        ("scope, micro-batch 2", 2),
    ]
    assert all(case.cached and case.checkpoints and case.lengths == "real" for case in found.values())
    assert found["scope, micro-batch 1"].accumulation == 16
    assert not cases.Case().checkpoints and cases.Case(model="llama-3-8b").checkpoints
