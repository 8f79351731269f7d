"""CONTRIBUTING.md and docs/design.md: complete, and of files and targets that are there."""

import re

import pytest

from tests.docs.pages import CONTRIBUTING, ROOT, make_targets

PACKAGE = ROOT / "axolotl_aot"
DESIGN = ROOT / "docs/design.md"
TOPS = ("axolotl_aot", "benchmarks", "tests")  # files are named by the end of their path


def listed_files() -> list[str]:
    """The files in design.md's tables, relative to the package: under a heading that names their folder."""
    text = DESIGN.read_text()
    found, folder = [], ""
    for line in text[text.index("\n## All files\n") :].splitlines():
        if line.startswith("### "):
            heading = re.search(r"`(\w+/)`", line)
            folder = heading[1] if heading else ""
        elif line.startswith("| `"):
            found += [folder + name for name in re.findall(r"`([\w/]+\.py)`", line.split(" | ")[0])]
    return found


def test_every_file_is_in_designs_tables_once():
    listed = listed_files()
    assert len(listed) == len(set(listed))
    modules = {p.relative_to(PACKAGE).as_posix() for p in PACKAGE.rglob("*.py") if p.name != "__init__.py"}
    in_a_folder = {name for name in modules if name.startswith("data/types/")}  # a line of its own
    assert set(listed) == modules - in_a_folder


@pytest.mark.parametrize("page", [CONTRIBUTING, DESIGN], ids=lambda page: page.name)
def test_files_that_are_named_are_there(page):
    named = re.findall(r"`([\w/.]+\.(?:py|md|toml|cff))`", page.read_text())
    assert named
    for name in named:
        places = (ROOT / name, *(found for top in TOPS for found in (ROOT / top).rglob(name)))
        assert any(place.is_file() for place in places), name


def test_targets_that_are_named_are_there():
    named = set(re.findall(r"`make ([\w-]+)`", CONTRIBUTING.read_text()))
    assert named == make_targets()
