"""Whether a YAML asks for anything that AOT would have to ignore, or that cannot run with it.

Each check takes the raw config and raises `AOTConfigError`; what it has made sure of, it writes back in
the form that axolotl needs.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from dataclasses import fields
from difflib import get_close_matches
from typing import Any, get_args, get_origin

from axolotl.cli.args import EvaluateCliArgs, InferenceCliArgs, PreprocessCliArgs, TrainerCliArgs
from axolotl.integrations.base import PluginManager
from axolotl.utils.import_helper import get_cls_from_module_str
from axolotl.utils.schemas.config import AxolotlInputConfig
from pydantic import AliasChoices, BaseModel
from pydantic.fields import FieldInfo
from transformers.trainer_pt_utils import AcceleratorConfig

from axolotl_aot.errors import AOTConfigError
from axolotl_aot.unread_keys import FOREIGN_KEYS, NEEDS, OTHER_NAMES

DEFAULT_BETA = 0.01  # the paper's choice

# Parallelism that cuts one sequence, one matrix or one layer over processes: never tried with AOT.
UNTRIED_PARALLELISM = (
    "context_parallel_size",
    "sequence_parallel_degree",
    "tensor_parallel_size",
    "expert_parallel_size",
)

# Options of axolotl's commands: the command line puts them into the config, beside what a command says of itself.
OPTIONS = (EvaluateCliArgs, InferenceCliArgs, PreprocessCliArgs, TrainerCliArgs)
SET_BY_COMMANDS = {"inference"}

# Their entries are checked by what reads them, `axolotl_aot.data.types`.
LISTS_OF_ENTRIES = ("datasets", "test_datasets")
FSDP_PREFIX = "fsdp_"  # which axolotl takes off the names in fsdp_config

# How samples are dealt out to the processes: the values that AOT counts on, which are the defaults.
DATA_LOADING = {"split_batches": False, "dispatch_batches": False, "even_batches": True}

# Metrics of which less is better; transformers takes that for granted of names that end in "loss" only.
LESS_IS_BETTER = ("dominance/violation", "dominance/violation_rate")


def check_keys(cfg: Mapping[str, Any], rl: str, own: type[BaseModel]) -> None:
    """Every key that is set will be read.

    own: the keys of this package, which axolotl's schema is about to get.

    Raises:
        AOTConfigError: a key that nothing knows, or that nothing would read with this `rl`.
    """
    schema = _schema(own)
    for key, advice in FOREIGN_KEYS.items():
        if _asks_for_something(cfg, key, schema):
            raise AOTConfigError(f"`{key}: {cfg[key]}` has no effect with `rl: {rl}`: {advice}")
    for key, (other, values) in NEEDS.items():
        if _asks_for_something(cfg, key, schema) and not _has(cfg, other, values, schema):
            needed = " or ".join(f"`{other}: {value}`" for value in values) or f"`{other}`"
            raise AOTConfigError(f"`{key}: {cfg[key]}` has no effect without {needed}; remove it")
    known = _names(schema) | _of_commands()
    for key, value in cfg.items():
        if value is not None and key not in known:
            hint = OTHER_NAMES.get(key) or _closest(key, known)
            raise AOTConfigError(
                f"`{key}` is not a key of axolotl, of axolotl-aot or of the plugins that the YAML lists, and "
                f"would have no effect. {hint and f'Did you mean {hint!r}?' or 'Remove it.'}"
            )
    for key, field in schema.items():
        if key not in LISTS_OF_ENTRIES:
            _check_nested(key, cfg.get(key), field.annotation)
    known = {field.name for field in fields(AcceleratorConfig)}
    _check_names("accelerator_config", cfg.get("accelerator_config") or {}, known)


def without_unread_keys(cfg: Mapping[str, Any], own: type[BaseModel]) -> dict[str, Any]:
    """A config without the keys that `check_keys` would refuse for their names."""
    known = _names(_schema(own)) | _of_commands()
    return {key: value for key, value in cfg.items() if key in known and key not in FOREIGN_KEYS}


def check_beta(cfg: MutableMapping[str, Any]) -> None:
    """`rl_beta` is a number above 0; writes it as one, or the default."""
    trl_beta = (cfg.get("trl") or {}).get("beta")
    if trl_beta is not None:  # axolotl would prefer it to rl_beta
        raise AOTConfigError(f"`trl: beta: {trl_beta}`: set rl_beta instead")
    given = cfg.get("rl_beta")
    try:
        beta = DEFAULT_BETA if given is None else float(given)  # YAML reads 1e-2 as a string
    except ValueError:
        beta = math.nan
    if isinstance(given, bool) or not (math.isfinite(beta) and beta > 0):
        raise AOTConfigError(f"`rl_beta: {given}`: must be a number above 0, such as {DEFAULT_BETA}")
    cfg["rl_beta"] = beta


def check_parallelism(cfg: MutableMapping[str, Any], rl: str) -> None:
    """Engines and ways of dealing out the data that were not tried, or cannot work."""
    for key in UNTRIED_PARALLELISM:
        if str(cfg.get(key) or 1) != "1":
            raise AOTConfigError(
                f"`{key}: {cfg[key]}`: AOT does not run over it; use data parallelism (DDP, FSDP or "
                "DeepSpeed), and gradient checkpointing where memory is short"
            )
    accelerator = cfg.get("accelerator_config") or {}
    for key, value in DATA_LOADING.items():
        if accelerator.get(key, value) not in (None, value):
            raise AOTConfigError(
                f"`accelerator_config: {key}: {accelerator[key]}` with `rl: {rl}`: samples would not be "
                f"dealt out evenly; remove it (axolotl's default is {str(value).lower()})"
            )
    if not cfg.get("fsdp_config") and not cfg.get("fsdp"):
        return
    for key in ("load_in_4bit", "load_in_8bit"):
        if cfg.get(key):
            raise AOTConfigError(
                f"`{key}: true` with FSDP and `rl: {rl}`: axolotl cannot shard quantized weights under "
                "FSDP2, and FSDP1 was not tried; use DeepSpeed (ZeRO-2) or DDP"
            )


def check_best_model(cfg: MutableMapping[str, Any]) -> None:
    """The best model is chosen on an evaluation set; writes `greater_is_better` for AOT's own metrics."""
    for key in ("metric_for_best_model", "early_stopping_patience", "load_best_model_at_end"):
        if cfg.get(key) and not cfg.get("test_datasets") and not cfg.get("val_set_size"):
            raise AOTConfigError(
                f"`{key}: {cfg[key]}` needs an evaluation set: set val_set_size or test_datasets, "
                "and eval_steps"
            )
    metric = str(cfg.get("metric_for_best_model") or "").removeprefix("eval_")
    if metric not in LESS_IS_BETTER:
        return
    if cfg.get("greater_is_better"):
        raise AOTConfigError(
            f"`greater_is_better: true` with `metric_for_best_model: {cfg['metric_for_best_model']}`: it is "
            "0 where the chosen answers dominate; remove greater_is_better, or set it to false"
        )
    cfg["greater_is_better"] = False


# --- axolotl's schema ---------------------------------------------------------------------------


def _schema(own: type[BaseModel]) -> dict[str, FieldInfo]:
    """The fields of axolotl's schema, with those of all registered plugins and of this package."""
    plugins = PluginManager.get_instance().get_input_args()
    models = [AxolotlInputConfig, *map(get_cls_from_module_str, plugins), own]
    return {name: field for model in models for name, field in model.model_fields.items()}


def _names(schema: Mapping[str, FieldInfo]) -> set[str]:
    """All names under which a YAML may write the fields."""
    aliases = [field.validation_alias for field in schema.values() if field.validation_alias]
    choices = [alias.choices if isinstance(alias, AliasChoices) else [alias] for alias in aliases]
    return {*schema, *(name for names in choices for name in names)}


def _of_commands() -> set[str]:
    """What a command may add to the config, and what `check_parallelism` answers for."""
    options = {option.name for command in OPTIONS for option in fields(command)}
    return {*options, *SET_BY_COMMANDS, *UNTRIED_PARALLELISM}


def _asks_for_something(cfg: Mapping[str, Any], key: str, schema: Mapping[str, FieldInfo]) -> bool:
    """Whether a key is neither empty, nor off, nor what it is without being set."""
    value = cfg.get(key)
    if isinstance(value, Mapping):
        return any(part not in (None, False) for part in value.values())
    if not value:
        return False
    return key not in schema or value != schema[key].get_default(call_default_factory=True)


def _has(
    cfg: Mapping[str, Any], key: str, values: tuple[str, ...], schema: Mapping[str, FieldInfo]
) -> bool:
    """Whether a key has one of the values, by default, too; without values: whether it is set."""
    value = cfg.get(key)
    if value is None:
        value = schema[key].get_default(call_default_factory=True)
    return value in values if values else bool(value)


def _closest(word: Any, known: Iterable[str]) -> str | None:
    return next(iter(get_close_matches(str(word), known, n=1, cutoff=0.7)), None)


def _check_nested(where: str, value: Any, annotation: Any) -> None:
    """The names under a key are those of its schema: axolotl's validation drops all others."""
    if isinstance(value, list):
        for entry in value:
            _check_nested(where, entry, annotation)
    models = list(_models_in(annotation))
    if not isinstance(value, Mapping) or not models:
        return
    inner = {name: field for model in models for name, field in model.model_fields.items()}
    if not any(model.model_config.get("extra") == "allow" for model in models):
        _check_names(where, value, _names(inner))
    for name, field in inner.items():
        _check_nested(f"{where}: {name}", value.get(name), field.annotation)


def _check_names(where: str, value: Mapping[str, Any], known: set[str]) -> None:
    for name, part in value.items():
        bare = str(name).removeprefix(FSDP_PREFIX) if where == "fsdp_config" else name
        if part is not None and name not in known and bare not in known:
            close = _closest(name, known)
            hint = f"Did you mean {close!r}?" if close else f"Known: {', '.join(sorted(known))}."
            raise AOTConfigError(f"`{where}: {name}` is not a key of axolotl, and would have no effect. {hint}")


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The schemas in a type such as `list[Model] | None`; none where any mapping will do."""
    parts = get_args(annotation)
    if any(get_origin(part) is dict for part in parts):
        return
    if isinstance(annotation, type) and get_origin(annotation) is None and issubclass(annotation, BaseModel):
        yield annotation
    for part in parts:
        yield from _models_in(part)
