"""Every link within the repository leads somewhere, and the pages keep their lengths."""

import re
from pathlib import Path

import pytest

from tests.docs.pages import CONTRIBUTING, DOCS, PAGES, README, ROOT, anchors, links, name, prose

LONGEST_LINE = 120


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page):
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{link}: there is no {path}"
        assert target.is_relative_to(ROOT), f"{link} leads out of the repository"
        if anchor:
            assert anchor in anchors(target), f"{link}: no such heading; there are {sorted(anchors(target))}"


def test_the_pages_have_links_that_are_checked():
    assert sum(len(links(page)) for page in PAGES) > 60
    assert "docs/metrics.md#the-report" in links(README)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_fences_are_closed(page):
    assert "```" not in prose(page)


def test_every_page_is_reached_from_the_readme_and_from_the_index():
    pages = {name(page) for page in DOCS} - {"docs/README.md"}
    assert pages <= {link.partition("#")[0] for link in links(README)}
    assert pages <= {f"docs/{link}" for link in links(ROOT / "docs" / "README.md")}


@pytest.mark.parametrize(
    ("page", "most"), [(README, 130), (CONTRIBUTING, 150)], ids=("README", "CONTRIBUTING")
)
def test_what_is_read_first_is_short(page, most):
    assert len(page.read_text("utf-8").splitlines()) <= most


@pytest.mark.parametrize("page", [README, *DOCS], ids=name)
def test_lines_are_short(page: Path):
    """But for tables and images, which cannot be broken."""
    for number, line in enumerate(page.read_text("utf-8").splitlines(), 1):
        assert len(line) <= LONGEST_LINE or re.match(r"\||!\[|<!--", line), f"line {number}"
