"""The commands that the pages show are taken by the real programs: their own parsers read the words."""

import importlib
import re
import subprocess
import sys
from importlib.util import find_spec

import click
import pytest
from axolotl.cli.main import cli

from axolotl_aot import cli as own
from benchmarks.speed.options import make_parser, read_options
from tests.docs.pages import PAGES, ROOT, commands, name, named_commands

OWN = {"aot-quickstart": own.quickstart, "aot-report": own.report, "aot-sample": own.sample}
# benchmarks whose command is one of click's
CLICK_MODULES = ("benchmarks.alignment", "benchmarks.alignment.batched", "benchmarks.alignment.rounds")
LAUNCHED = {
    "axolotl.cli.train": "train"
}  # modules that the launchers start in place of a command of axolotl's

SHOWN = [(name(page), words) for page in PAGES for words in commands(page)]
NAMED = [(name(page), words) for page in PAGES for words in named_commands(page)]


def axolotl_command(words: list[str]) -> click.Command:
    assert words[0] in cli.list_commands(None), f"axolotl has no command {words[0]}"
    return OWN.get(words[0]) or cli.get_command(None, words[0])


def require_options(command: click.Command, words: list[str]) -> dict:
    """The command's parser takes all of these words; what it has read, by the parameters' names."""
    given, rest, _ = command.make_parser(click.Context(command)).parse_args(list(words))
    assert not rest, f"{command.name} does not take {rest}"
    return given


def check_module(words: list[str], folder) -> None:
    module, *arguments = words
    assert find_spec(module), f"there is no module {module}"
    if module == "benchmarks.speed":
        (folder / "pairs.jsonl").touch()
        read_options(arguments, make_parser("the parser ends the process where it refuses something"))
    elif module in CLICK_MODULES:
        main = importlib.import_module(f"{module}.command").main
        require_options(main, arguments)
    elif arguments:
        help_of = [sys.executable, "-m", module, "--help"]
        text = subprocess.run(help_of, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        assert all(word in text for word in arguments if word.startswith("--"))


def check_target(words: list[str]) -> None:
    target = words[0]
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE), target


@pytest.mark.parametrize(
    ("page", "words"), SHOWN, ids=lambda value: " ".join(value) if isinstance(value, list) else value
)
def test_a_command_that_is_shown(page, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if words[0] == "make":
        check_target(words[1:])
    elif words[0] == "python":
        check_module(words[2:], tmp_path)
    else:
        command = axolotl_command(words[1:])
        given = require_options(command, words[2:])
        missing = [p.name for p in command.params if p.required and given.get(p.name) is None]
        assert not missing, f"{command.name} needs {missing}"


@pytest.mark.parametrize(
    ("page", "words"), NAMED, ids=lambda value: " ".join(value) if isinstance(value, list) else value
)
def test_a_command_that_is_named(page, words):
    if words[0] == "make":
        check_target(words[1:])
    elif words[0] == "python":
        assert find_spec(words[2]), f"there is no module {words[2]}"
    else:
        command = axolotl_command(words[1:])
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known


def test_commands_are_found():
    shown = {words[0] for _, words in SHOWN}
    assert shown == {"axolotl", "make", "python"}
    assert len(SHOWN) > 25 and len(NAMED) > 10
    assert {words[1] for page, words in SHOWN if page == "README.md"} == {"quickstart", "test"}


@pytest.mark.parametrize("command", OWN.values(), ids=OWN)
def test_every_option_of_our_commands_is_in_the_docs(command):
    pages = {"aot-quickstart": "sampling.md", "aot-report": "metrics.md", "aot-sample": "sampling.md"}
    text = (ROOT / "docs" / pages[command.name]).read_text("utf-8")
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.opts[0] in text
