"""Which columns of a CSV or TSV file hold conversations, written as JSON for want of another way.

A text that happens to be JSON is text. So a column counts only where each of its cells is a list of messages.
"""

import json
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from axolotl.utils.logging import get_logger

from axolotl_aot.data.rows import is_blank

if TYPE_CHECKING:
    from datasets import Dataset

LOG = get_logger(__name__)

LOOKED_AT = 100  # rows by which a column is judged where nothing depends on the others


def message_columns(dataset: "Dataset", columns: list[str], roles: Collection[str], where: str) -> set[str]:
    """Those of the columns that hold nothing but lists of messages, empty cells aside.

    roles: the names of the property that makes a mapping a message. where: the entry's name in messages.
    """
    found = set()
    for column in columns:
        cells = [(i, cell) for i, cell in enumerate(dataset[column], start=1) if not is_blank(cell)]
        if not cells or not any(_is_message_list(cell, roles) for _, cell in cells[:1] + cells[-1:]):
            continue
        other = next((i for i, cell in cells if not _is_message_list(cell, roles)), None)
        if other is None:
            found.add(column)
        else:
            LOG.warning(
                f"{where}: `{column}` is taken as text: some of its rows are lists of messages, written as "
                f"JSON, but row {other} is not. Mend that row if the column is meant to hold conversations."
            )
    return found


def warn_of_json_text(dataset: "Dataset", columns: list[str], roles: Collection[str], where: str) -> None:
    """Say so where a column of text, in a file that knows lists, looks like one of conversations."""
    for column in columns:
        cells = dataset[:LOOKED_AT][column]
        if all(isinstance(cell, str) and _is_message_list(cell, roles) for cell in cells):
            LOG.warning(
                f"{where}: `{column}` is text, and taken as such, but looks like lists of messages written "
                "as JSON. If it is meant to hold conversations, write lists in the file (or keep it as CSV, "
                "where such a column is decoded)."
            )


def _is_message_list(cell: str, roles: Collection[str]) -> bool:
    if not cell.lstrip().startswith("["):
        return False
    try:
        messages: Any = json.loads(cell)
    except json.JSONDecodeError:
        return False
    return bool(messages) and all(isinstance(m, Mapping) and not set(roles).isdisjoint(m) for m in messages)
