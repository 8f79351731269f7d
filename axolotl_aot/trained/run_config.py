"""The YAML of a training run, read again by a command that only uses what was trained.

It may be of `rl: aot` and `aot_unpaired`, or of another preference type whose rows are pairs or answers with
a label: that is read as if it were AOT's, so that all of them are treated alike.
"""

from pathlib import Path
from typing import Any

import torch
import yaml
from axolotl.cli.config import load_cfg
from axolotl.utils.dict import DictDefault

from axolotl_aot import config
from axolotl_aot.errors import AOTConfigError
from axolotl_aot.trained.refusals import refusals
from axolotl_aot.trained.weights import kind_of
from axolotl_aot.unread_keys import without_unread_keys

PLUGIN = "axolotl_aot.AOTPlugin"
# Other types of axolotl's, and which of AOT's has the same rows.
OTHER_TYPES = {"dpo": "aot", "ipo": "aot", "simpo": "aot", "kto": "aot_unpaired"}
# Keys of training that stand in the way of using what was trained in one process.
TRAINING_KEYS = (
    "accelerator_config",
    "auto_resume_from_checkpoints",
    "deepspeed",
    "early_stopping_patience",
    "fsdp",
    "fsdp_config",
    "fsdp_version",
    "load_best_model_at_end",
    "lora_model_dir",
    "metric_for_best_model",
    "precompute_ref_log_probs",
    "resume_from_checkpoint",
    "trainer_cls",
    "trl",
    "use_wandb",
)
# What is read before axolotl validates it. By key: the kind that its value must be of, and in words.
KINDS = {
    **dict.fromkeys(("base_model", "rl", "output_dir", "lora_model_dir"), (str, "text")),
    "plugins": (list, f"a list, such as [{PLUGIN}]"),
    **dict.fromkeys(("datasets", "test_datasets"), (list, "a list of entries, each with `path` and `type`")),
}
# What an entry of `datasets` says of its own file only.
OF_ONE_FILE = ("data_files", "name", "shards", "shards_idx", "revision", "ds_type")


def read_yaml(path: Path) -> dict[str, Any]:
    """The keys of a YAML.

    Raises:
        AOTConfigError: it is none, holds no keys, or something else than text where text must be.
    """
    try:
        raw = yaml.safe_load(path.read_text("utf-8"))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        said = ": ".join(part for part in (error.context, error.problem) if part)
        raise AOTConfigError(f"{path}{where}, is not YAML: {said}") from None
    except yaml.YAMLError as error:
        raise AOTConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    except UnicodeDecodeError as error:
        raise AOTConfigError(f"{path} is not YAML, which is text in UTF-8: {error}") from None
    if not isinstance(raw, dict):
        held = "is empty" if raw is None else f"holds a {type(raw).__name__}, and no keys"
        raise AOTConfigError(f"{path} {held}: it must be the YAML of a training run, with `base_model: ...`")
    for key, (kind, words) in KINDS.items():
        if raw.get(key) is not None and not isinstance(raw[key], kind):
            raise AOTConfigError(f"`{key}: {raw[key]}`: must be {words}")
    return raw


def without_training(raw: dict[str, Any], use: str) -> dict[str, Any]:
    """The YAML of a training run, of any preference type, as one of AOT's that trains nothing.

    use: what a message says before the types that it could be, such as `a report is made of`.

    Raises:
        AOTConfigError: a type without pairs and without labels.
    """
    rl = raw.get("rl")
    cfg = {key: value for key, value in raw.items() if key not in TRAINING_KEYS}
    if rl in OTHER_TYPES:
        cfg = without_unread_keys(cfg, config.AOTInput)
        cfg["rl"] = OTHER_TYPES[rl]
        cfg["plugins"] = [*(cfg.get("plugins") or []), PLUGIN]
        if cfg["rl"] == "aot":
            cfg.pop("remove_unused_columns", None)
    elif rl not in config.RL_TYPES:
        raise AOTConfigError(
            f"`rl: {rl}`: {use} {', '.join((*config.RL_TYPES, *OTHER_TYPES))}: types with "
            "chosen and rejected answers and a reference"
        )
    elif not any(str(plugin).endswith("AOTPlugin") for plugin in cfg.get("plugins") or []):
        raise AOTConfigError(f"`rl: {rl}` needs `plugins: [{PLUGIN}]`, which the YAML does not list")
    return cfg


def without_file(entry: dict[str, Any]) -> dict[str, Any]:
    """The options of an entry of `datasets` that go for another file as well.

    Raises:
        AOTConfigError: it has none.
    """
    if not isinstance(entry, dict):
        raise AOTConfigError(f"`datasets: [{entry}, ...]`: an entry must be a mapping with `path` and `type`")
    return {key: value for key, value in entry.items() if key not in OF_ONE_FILE}


def load_without_training(cfg: dict[str, Any], out: Path) -> DictDefault:
    """The config, validated by axolotl, on one device. out: a folder whose debug.log axolotl may empty.

    Raises:
        AOTConfigError: what axolotl's validation refuses, and what it stumbles over.
    """
    cfg = {**cfg, "output_dir": str(out)}
    if not cfg.get("device_map") and torch.cuda.is_available():
        cfg["device_map"] = {"": torch.cuda.current_device()}  # axolotl would spread it over all of them
    with refusals(cfg):
        loaded = load_cfg(DictDefault(cfg))
    Path(loaded.axolotl_config_path).unlink(missing_ok=True)  # load_cfg's copy
    return loaded


def sequences_at_once(cfg: DictDefault) -> int:
    """How many sequences the YAML has evaluated at once, and so surely fit into memory."""
    return cfg.eval_batch_size or cfg.micro_batch_size


def trained_by(raw: dict[str, Any]) -> Path:
    """Where a run's own result is: in `output_dir`, or where AOT's `lora_model_dir` says, if there is none.

    A run that started from the adapter in `lora_model_dir` has its result in `output_dir`.
    """
    folder, named = output_dir(raw), raw.get("lora_model_dir")
    if not named or raw["rl"] not in config.RL_TYPES or kind_of(folder) is not None:
        return folder
    return Path(named)


def output_dir(raw: dict[str, Any]) -> Path:
    """Where a run writes to."""
    return Path(raw.get("output_dir") or "model-out")  # axolotl's default
