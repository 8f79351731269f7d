"""The keys that the pages name are those that there are, and the table of them says what `AOTArgs` says."""

import re
import runpy

import pytest

from axolotl_aot.config import AOTArgs, AOTInput
from tests.docs.pages import PAGES, ROOT, name

PAGE = ROOT / "docs" / "configuration.md"
# what begins as a key does, and is none: a type of `rl:`, and the folder of the reference's log-probabilities
NO_KEYS = {"aot_unpaired", "aot_references"}


def named_keys(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w./])aot_[a-z]\w*", text)) - NO_KEYS


def test_the_table_is_what_the_fields_say():
    script = runpy.run_path(str(ROOT / "docs" / "keys_table.py"))
    page = PAGE.read_text("utf-8")
    assert page == script["with_table"](page), "run `python docs/keys_table.py`"
    assert named_keys(script["table"]()) == set(AOTArgs.model_fields)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_no_page_names_a_key_that_is_not_there(page):
    assert named_keys(page.read_text("utf-8")) <= set(AOTInput.model_fields)
