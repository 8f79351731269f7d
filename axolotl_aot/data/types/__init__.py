"""The table of `type:` names, and an entry of the YAML checked against it."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError

from axolotl_aot.data.entry import Entry
from axolotl_aot.data.types.axolotl_types import AxolotlType, DPOType, KTOType
from axolotl_aot.data.types.chat_template import ChatTemplate, ChatTemplatePairs
from axolotl_aot.data.types.pairs import Pairs
from axolotl_aot.data.types.ranked import Ranked, RankedPairs
from axolotl_aot.data.types.scored import Scored
from axolotl_aot.errors import AOTDataError, closest

TYPES: dict[str, dict[str, type[Entry]]] = {
    "aot": {
        "chat_template": ChatTemplatePairs,
        "pairs": ChatTemplatePairs,
        "ranked": RankedPairs,
    },
    "aot_unpaired": {
        "chat_template": ChatTemplate,
        "pairs": Pairs,
        "scored": Scored,
        "ranked": Ranked,
    },
}
# axolotl's names for what `chat_template` finds out from the columns
CHAT_TEMPLATE_ALIASES = ("chat_template.default", "chat_template.argilla_chat")
AXOLOTL_TYPES: dict[str, type[AxolotlType]] = {"aot": DPOType, "aot_unpaired": KTOType}


def parse(rl: str, raw: Any, where: str) -> Entry:
    """The checked entry. where: what the messages call it, such as `datasets[0]`.

    Raises:
        AOTDataError: an unknown type or option, or a value that is none of the option's.
    """
    if not isinstance(raw, Mapping):
        raise AOTDataError(f"{where}: expected a mapping with `path` and `type`, found {raw!r:.80}")
    if not raw.get("path"):
        raise AOTDataError(f"{where}: `path` is missing: a file, a folder or a name on the Hugging Face hub")
    where = f"{where} ({raw['path']})"
    entry_type = _type_of(rl, raw.get("type"), where)
    try:
        # an option without a value is one that is not set
        return entry_type.model_validate({key: value for key, value in raw.items() if value is not None})
    except ValidationError as error:
        messages = [_describe(e, rl, entry_type, raw) for e in error.errors()]
        raise AOTDataError("; ".join(f"{where}: {message}" for message in dict.fromkeys(messages))) from None


def _type_of(rl: str, name: Any, where: str) -> type[Entry]:
    if not isinstance(name, str):
        return AXOLOTL_TYPES[rl]
    if name in CHAT_TEMPLATE_ALIASES:
        name = "chat_template"
    if name in TYPES[rl]:
        return TYPES[rl][name]
    for other, types in TYPES.items():
        if name in types:
            raise AOTDataError(
                f"{where}: `type: {name}` is one for `rl: {other}`; this is `rl: {rl}`, "
                f"with the types {', '.join(TYPES[rl])} and axolotl's own"
            )
    if close := get_close_matches(name, TYPES[rl], n=1, cutoff=0.75):
        raise AOTDataError(f"{where}: `type: {name}` is not known. Did you mean {close[0]!r}?")
    return AXOLOTL_TYPES[rl]


def _describe(error: Any, rl: str, entry_type: type[Entry], raw: Mapping[str, Any]) -> str:
    if not error["loc"]:
        return error["msg"].removeprefix("Value error, ")
    key = error["loc"][0]
    kind = f"`type: {raw['type']}`" if isinstance(raw.get("type"), str) else "this type"
    if error["type"] != "extra_forbidden" or len(error["loc"]) > 1:
        inner = "".join(f".{part}" for part in error["loc"][1:] if isinstance(part, str))
        message = error["msg"].removeprefix("Value error, ")
        return f"`{key}{inner}: {error['input']}`: {message[0].lower()}{message[1:]}"
    users = [f"`type: {name}`" for name, other in TYPES[rl].items() if key in other.model_fields]
    if users:
        return f"`{key}` is no option of {kind}, but of {', '.join(users)}"
    return f"`{key}` is no option of {kind}.{closest(str(key), entry_type.model_fields)}"
