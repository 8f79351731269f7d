"""The commands that the pages show are taken by the real programs: their own parsers read the words."""

import importlib
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import pytest
from accelerate.commands.launch import launch_command_parser
from axolotl.cli.main import cli

from axolotl_aot import cli as own
from benchmarks.speed.options import make_parser, read_options
from tests.docs.pages import PAGES, ROOT, commands, make_targets, name, named_commands

OWN = {"aot-quickstart": own.quickstart, "aot-report": own.report, "aot-sample": own.sample}
# benchmarks whose command is one of click's
CLICK_MODULES = ("benchmarks.alignment", "benchmarks.alignment.batched", "benchmarks.alignment.rounds")


# --- What each program says of its words --------------------------------------------------------


def axolotl_command(command: str) -> click.Command:
    assert command in cli.list_commands(None), f"axolotl has no command {command}"
    return OWN.get(command) or cli.get_command(None, command)


def read(command: click.Command, words: list[str]) -> dict[str, Any]:
    """What the command's parser makes of all these words, by the parameters' names.

    axolotl's own commands would hand what they do not know on to the launcher.
    """
    given, rest, _ = command.make_parser(click.Context(command)).parse_args(list(words))
    assert not rest, f"{command.name} does not take {rest}"
    return given


def check_axolotl(words: list[str]) -> None:
    command = axolotl_command(words[0])
    given = read(command, words[1:])
    missing = [p.name for p in command.params if p.required and given.get(p.name) is None]
    assert not missing, f"{command.name} needs {missing}"


def check_accelerate(words: list[str]) -> None:
    launched = launch_command_parser().parse_args(words[1:])
    assert launched.module and find_spec(launched.training_script)


def check_python(words: list[str]) -> None:
    module, *arguments = words[1:]
    assert find_spec(module), f"there is no module {module}"
    if module == "benchmarks.speed":
        Path("pairs.jsonl").touch()  # which its --data must find
        read_options(arguments, make_parser("it ends the process where it refuses something"))
    elif module in CLICK_MODULES:
        read(importlib.import_module(f"{module}.command").main, arguments)
    elif options := [word for word in arguments if word.startswith("--")]:
        show = [sys.executable, "-m", module, "--help"]
        text = subprocess.run(show, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        assert all(option in text for option in options)


def check_make(words: list[str]) -> None:
    assert words[0] in make_targets(), f"the Makefile has no {words[0]}"


CHECKS = {
    "accelerate": check_accelerate,
    "axolotl": check_axolotl,
    "make": check_make,
    "python": check_python,
}


def check_axolotl_name(words: list[str]) -> None:
    known = {option for parameter in axolotl_command(words[0]).params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known


# of a command in a sentence, which may lack its arguments
CHECKS_OF_NAMED = {**CHECKS, "axolotl": check_axolotl_name}


# --- The pages -----------------------------------------------------------------------------------

SHOWN = [(name(page), words) for page in PAGES for words in commands(page)]
NAMED = [(name(page), words) for page in PAGES for words in named_commands(page)]


def as_id(value: str | list[str]) -> str:
    return value if isinstance(value, str) else " ".join(value)


@pytest.mark.parametrize(("page", "words"), SHOWN, ids=as_id)
def test_a_command_that_is_shown(page, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    CHECKS[words[0]](words[1:])


@pytest.mark.parametrize(("page", "words"), NAMED, ids=as_id)
def test_a_command_that_is_named(page, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    CHECKS_OF_NAMED[words[0]](words[1:])


def test_commands_are_found():
    assert {words[0] for _, words in SHOWN} == set(CHECKS)
    assert len(SHOWN) > 25 and len(NAMED) > 10
    assert {words[1] for page, words in SHOWN if page == "README.md"} == {"quickstart", "test"}


@pytest.mark.parametrize("command", OWN.values(), ids=OWN)
def test_every_option_of_our_commands_is_in_the_docs(command):
    pages = {"aot-quickstart": "sampling.md", "aot-report": "metrics.md", "aot-sample": "sampling.md"}
    text = (ROOT / "docs" / pages[command.name]).read_text("utf-8")
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.opts[0] in text
