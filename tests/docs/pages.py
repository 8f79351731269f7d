"""The pages that a reader is shown, and what stands in them: headings, links, fenced blocks, commands."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [
    README,
    CONTRIBUTING,
    *DOCS,
    *sorted((ROOT / "example_configs").rglob("*.md")),
    ROOT / "benchmarks" / "SPEED.md",
    ROOT / "benchmarks" / "alignment" / "RESULTS.md",
]

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
INDENTED = re.compile(r"(?<=\n\n)(?: {4}.*\n)+")
INLINE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
LINK = re.compile(r"\[[^\[\]]*\]\(([^()\s]+)\)")
COMMAND = re.compile(r"(?:axolotl [a-z]|make [a-z]|python -m [a-z]|accelerate launch ).*")


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def make_targets() -> set[str]:
    return set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))


class Block(NamedTuple):
    """A fenced block. name: of its page, and the number of the line it begins at."""

    name: str
    language: str
    text: str


def blocks(page: Path, language: str) -> list[Block]:
    text = page.read_text("utf-8")
    return [
        Block(f"{name(page)}:{text.count(chr(10), 0, found.start()) + 1}", *found.groups())
        for found in FENCE.finditer(text)
        if found[1] == language
    ]


def all_blocks(language: str) -> list[Block]:
    return [block for page in PAGES for block in blocks(page, language)]


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return FENCE.sub("", page.read_text("utf-8"))


def anchors(page: Path) -> set[str]:
    """Those that a code host gives the headings: lower case, without punctuation, hyphens for spaces."""
    found: list[str] = []
    for heading in re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE):
        anchor = re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")
        found.append(f"{anchor}-{found.count(anchor)}" if anchor in found else anchor)
    return set(found)


def links(page: Path) -> list[str]:
    """Where a page's links and images lead, but for those to other sites."""
    targets = LINK.findall(INLINE.sub("", prose(page)))
    return [target for target in targets if not re.match(r"\w+:", target)]


def commands(page: Path) -> list[list[str]]:
    """The commands of a page's shell blocks and indented blocks, each as its words."""
    text = page.read_text("utf-8")
    shown = [block.text for block in blocks(page, "sh")] + INDENTED.findall(FENCE.sub("", text))
    lines = [line.strip() for block in shown for line in block.replace("\\\n", " ").splitlines()]
    return [words_of(line) for line in lines if COMMAND.match(line)]


def named_commands(page: Path) -> list[list[str]]:
    """The commands that a page names in a sentence; they may lack arguments."""
    return [words_of(code) for code in INLINE.findall(prose(page)) if COMMAND.fullmatch(code)]


def words_of(line: str) -> list[str]:
    """Without the brackets around what may be left out, and the dots of what may be repeated."""
    return shlex.split(re.sub(r"[\[\]]|\.\.\.", "", line), comments=True)
