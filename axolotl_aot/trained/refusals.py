"""What axolotl refuses in a YAML, as one paragraph of keys, values and remedies in place of a traceback."""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

from axolotl.utils.schemas.config import AxolotlInputConfig
from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from axolotl_aot.errors import AOTConfigError, AOTDataError

SHOWN = 80  # characters of a value
# Values of keys whose schema takes any text, and whose errors name none.
OPEN = {"adapter": ("lora", "qlora")}
FIELDS: dict[str, FieldInfo] = AxolotlInputConfig.model_fields


@contextmanager
def refusals(cfg: Mapping[str, Any]) -> Iterator[None]:
    """While axolotl reads a config: its errors, of whatever class, are told as this package tells its own.

    axolotl checks some values before it has checked their types, and ends at the first that is wrong. So each
    key is looked at by itself as well, but only when something is wrong: axolotl mends some before it checks.

    Raises:
        AOTConfigError: naming each key that is wrong, its value, and what would be right.
    """
    try:
        yield
    except (AOTConfigError, AOTDataError):
        raise
    except ValidationError as error:
        raise AOTConfigError("; ".join(_distinct(cfg, [*_by_key(cfg), *error.errors()]))) from None
    except OSError as error:
        base = cfg.get("base_model")
        if base is None or Path(base).is_dir():
            raise
        raise AOTConfigError(
            f"`base_model: {base}`: is no folder here, and not to be had from the Hugging Face hub "
            f"({str(error).splitlines()[0]})"
        ) from None
    except (AttributeError, KeyError, TypeError, ValueError):
        found = _distinct(cfg, _by_key(cfg))
        if not found:
            raise
        raise AOTConfigError("; ".join(found)) from None


def _by_key(cfg: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Pydantic's errors of each key's value by itself."""
    for key, value in cfg.items():
        field = FIELDS.get(key)
        if field is None or value is None or key == "rl":  # which the plugin has checked, and translates
            continue
        try:
            TypeAdapter(Annotated[field.annotation, field]).validate_python(value)
        except ValidationError as error:
            yield from ({**part, "loc": (key, *part["loc"])} for part in error.errors())


def _distinct(cfg: Mapping[str, Any], errors: Iterable[Any]) -> list[str]:
    """What to say of each place that is wrong, once."""
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    whole: dict[str, None] = {}
    for error in errors:
        if place := _place(cfg, error):
            found.setdefault(place, {})[error["msg"]] = error
        else:
            whole[_of_several_keys(cfg, error["msg"].removeprefix("Value error, "))] = None
    return [*(_of_one_key(cfg, place, list(parts.values())) for place, parts in found.items()), *whole]


def _place(cfg: Mapping[str, Any], error: Any) -> tuple[str, ...]:
    """The keys that lead to the value; without the names of types that pydantic puts in for a union."""
    place, value = [], cfg
    for part in error["loc"]:
        inside = value if isinstance(value, Mapping) else range(len(value) if isinstance(value, list) else 0)
        if part not in inside:
            break
        place.append(part)
        value = value[part]
    return (*place, error["loc"][-1]) if error["type"] == "missing" else tuple(place)


def _of_one_key(cfg: Mapping[str, Any], place: tuple[str, ...], errors: list[Any]) -> str:
    key = ".".join(map(str, place))
    if errors[0]["type"] == "missing":
        return f"`{key}` is missing, and axolotl needs it{_description(key)}"
    value: Any = cfg
    for part in place:
        value = value[part]
    said = dict.fromkeys(e["msg"].removeprefix("Value error, ").removeprefix("Input ") for e in errors)
    known = [
        word for e in errors for word in re.findall(r"'([^']+)'", str(e.get("ctx", {}).get("expected", "")))
    ]
    hint = _meant(value, known)
    return f"`{key}: {_short(value)}`: {', or '.join(said)}{'.' if hint else ''}{hint}"


def _of_several_keys(cfg: Mapping[str, Any], message: str) -> str:
    """An error of the whole YAML, behind the keys that it is about: those that it names, or whose values."""
    said = set(re.findall(r"\w+", message.lower()))
    single = {key: value for key, value in cfg.items() if isinstance(value, str | int | float)}
    named = [key for key in single if str(key).lower() in said]
    named = named or [key for key, value in single.items() if str(value).lower() in said]
    about = ", ".join(f"`{key}: {_short(cfg[key])}`" for key in named)
    if len(named) != 1:
        return f"{about}: {message}" if about else message
    (key,) = named
    return f"{about}: {message}{_meant(cfg[key], OPEN.get(key, ())) or _description(key)}"


def _meant(value: Any, known: Collection[str]) -> str:
    """Which of several known values was meant; empty where that cannot be told, or it is one of them."""
    close = () if value in known else get_close_matches(str(value), known, n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def _description(key: str) -> str:
    """The first line of what axolotl's schema says of a key, in brackets; empty where it says nothing."""
    extra = FIELDS[key].json_schema_extra if key in FIELDS else None
    found = extra.get("description") if isinstance(extra, dict) else None
    return f" ({str(found).splitlines()[0].rstrip('.')})" if found else ""


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."
