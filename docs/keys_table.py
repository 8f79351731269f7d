"""The table of the `aot_` keys in `configuration.md`, from the fields of `AOTArgs`.

    python docs/keys_table.py

writes it between the two comments there. The fields' descriptions are its only source, so that nothing is
said twice; a test keeps the page as this writes it.
"""

import re
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from axolotl_aot.config import AOTArgs

PAGE = Path(__file__).with_name("configuration.md")
BETWEEN = re.compile(r"(?<=do not edit -->\n).*?(?=<!-- end of keys -->)", re.DOTALL)
NUMBERS = {int: "whole number", float: "number"}
BOUNDS = {"ge": "from {}", "gt": "above {}", "le": "to {}", "lt": "below {}"}


def table() -> str:
    rows = [
        (f"`{key}`", values(field), as_yaml(field.default), field.description)
        for key, field in AOTArgs.model_fields.items()
    ]
    head = "| key | values | default | what it does |\n|---|---|---|---|\n"
    return head + "".join(f"| {' | '.join(row)} |\n" for row in rows)


def values(field: FieldInfo) -> str:
    """What a key may be, in words."""
    kinds = [kind for kind in get_args(field.annotation) if kind is not NoneType]
    if get_origin(field.annotation) is Literal:
        return ", ".join(map(as_yaml, kinds))
    (kind,) = kinds or [field.annotation]
    if kind is bool:
        return "`true`, `false`"
    bounds = [
        words.format(bound)
        for name, words in BOUNDS.items()
        for limit in field.metadata
        if (bound := getattr(limit, name, None)) is not None
    ]
    return " ".join([NUMBERS[kind], *bounds])


def as_yaml(value: Any) -> str:
    """As the YAML writes it; nothing for None, of which the description says what it stands for."""
    if value is None:
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def with_table(page: str) -> str:
    assert len(BETWEEN.findall(page)) == 1, f"{PAGE.name} has lost the comments around the table"
    return BETWEEN.sub(lambda _: table(), page)


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text("utf-8")), "utf-8")
