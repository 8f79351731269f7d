"""Whether the adapter that `lora_model_dir` names can be where a run starts: what must hold of its files."""

import json
import logging
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from peft import LoraConfig, PeftConfig, PeftModel, PeftType, get_peft_model_state_dict, load_peft_weights
from safetensors import SafetensorError
from torch import Tensor

from axolotl_aot.errors import AOTConfigError
from axolotl_aot.scoring.models import ADAPTER_CONFIG, ADAPTER_WEIGHTS, another_base
from axolotl_aot.training.restored_settings import OF_ADAPTER, comparable

LOG = logging.getLogger(__name__)

# Fields of PEFT's configuration that say nothing about the model that the weights make.
NOT_OF_THE_WEIGHTS = {
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "eva_config",
    "exclude_modules",  # as the next one: which modules have weights is read from these
    "layers_pattern",
    "inference_mode",
    "init_lora_weights",
    "loftq_config",
    "lora_dropout",  # TRL switches it off
    "lora_ga_config",
    "peft_type",
    "peft_version",
    "revision",
    "task_type",
}
# By PEFT's name, what the YAML calls a field, where it can set it.
YAML_KEYS = {
    **{name: key for key, name in OF_ADAPTER.items()},
    "fan_in_fan_out": "lora_fan_in_fan_out",
    "layer_replication": "peft_layer_replication",
    "trainable_token_indices": "peft_trainable_token_indices",
    "ensure_weight_tying": "peft_ensure_weight_tying",
}
# PEFT's `init_lora_weights` that leave the base model's own weights as they are.
KEEPS_THE_BASE = (True, False, None, "gaussian", "orthogonal", "eva")
# What PEFT cannot hold twice on one model.
ONCE_ONLY = {"target_parameters": "lora_target_parameters", "layer_replication": "peft_layer_replication"}
# Of a base model's config.json: with another value of one of these it is another kind of model.
OF_BASE = ("model_type", "hidden_size", "num_hidden_layers", "vocab_size")


def require_start(folder: str, output_dir: str | None) -> LoraConfig:
    """The configuration of the LoRA adapter in a folder that a run can start from.

    Raises:
        AOTConfigError: no such adapter there, or the run would write into the folder.
    """
    key = f"`lora_model_dir: {folder}`"
    path = Path(folder)
    if output_dir is not None and Path(output_dir).resolve() in (path.resolve(), *path.resolve().parents):
        raise AOTConfigError(
            f"{key} lies in `output_dir: {output_dir}`, where the run would write over the adapter that it "
            "starts from, and could not be resumed: set another output_dir"
        )
    config = require_adapter(folder)
    kind = config.get("peft_type")
    if kind != PeftType.LORA.value:
        raise AOTConfigError(f"{key}: an adapter of PEFT's type {kind}; training can start from LoRA only")
    if config.get("init_lora_weights") not in KEEPS_THE_BASE:
        raise AOTConfigError(
            f"{key}: its init_lora_weights, {config['init_lora_weights']}, has changed the base model's own "
            "weights; convert it to LoRA of the unchanged base model (PEFT's save_pretrained with "
            "path_initial_model_for_weight_conversion)"
        )
    return PeftConfig.from_pretrained(folder)


def require_adapter(folder: str) -> dict[str, Any]:
    """What the adapter_config.json of a `lora_model_dir` holds.

    Raises:
        AOTConfigError: there is none, or it is damaged.
    """
    key = f"`lora_model_dir: {folder}`"
    try:
        return json.loads((Path(folder) / ADAPTER_CONFIG).read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise AOTConfigError(
            f"{key}: no adapter there ({ADAPTER_CONFIG}); training starts from an adapter in a local folder, "
            "such as the output_dir of an earlier run; without the key it starts from base_model"
        ) from None
    except json.JSONDecodeError as error:
        raise AOTConfigError(f"{key}: {ADAPTER_CONFIG} is damaged ({error})") from None


def require_same_adapter(policy: PeftModel, found: LoraConfig, folder: str) -> None:
    """The YAML describes the adapter in the folder, in all that its weights depend on.

    policy: with the new adapter that the YAML has made.

    Raises:
        AOTConfigError: it describes another one, or one that cannot be a start.
    """
    asked = policy.peft_config[policy.active_adapter]
    for name, key in ONCE_ONLY.items():
        value = asked.to_dict()[name]
        if value:
            raise AOTConfigError(
                f"`{key}: {comparable(value)}` with `lora_model_dir: {folder}`: PEFT cannot hold such an "
                "adapter twice, trained and as the reference; merge it into base_model first "
                "(axolotl merge-lora)"
            )
    if asked.init_lora_weights is not True:
        raise AOTConfigError(
            f"`peft_init_lora_weights: {asked.init_lora_weights}` (or `peft.loftq_config`) with "
            f"`lora_model_dir`: the adapter begins with the weights in {folder}; remove it"
        )
    _require_same_settings(asked.to_dict(), found.to_dict(), folder)
    _require_same_base(found, asked.base_model_name_or_path, folder)


def _require_same_settings(asked: dict[str, Any], found: dict[str, Any], folder: str) -> None:
    changed = [
        f"`{YAML_KEYS.get(name, name)}: {comparable(value)}` (the adapter: {comparable(found[name])})"
        for name, value in asked.items()
        if name not in NOT_OF_THE_WEIGHTS and comparable(value) != comparable(found[name])
    ]
    if changed:
        raise AOTConfigError(
            f"cannot start from `lora_model_dir: {folder}` with other settings than its adapter's: "
            f"{', '.join(changed)}. Set them to the adapter's, or start without lora_model_dir"
        )


def _require_same_base(found: PeftConfig, base: str, folder: str) -> None:
    """Refuse a base model that is known to be of another shape, and warn of another name."""
    trained_on = another_base(found, base)
    if trained_on is None:
        return
    theirs, ours = (_base_config(name) for name in (trained_on, base))
    differing = [key for key in OF_BASE if {key} <= theirs.keys() & ours.keys() and theirs[key] != ours[key]]
    if differing:
        values = ", ".join(f"{key} {ours[key]} (the adapter's: {theirs[key]})" for key in differing)
        raise AOTConfigError(
            f"`base_model: {base}`: the adapter in `lora_model_dir: {folder}` was trained on {trained_on}, "
            f"another kind of model: {values}"
        )
    LOG.warning("the adapter in %s was trained on %s, and training starts on %s", folder, trained_on, base)


def _base_config(folder: str) -> dict[str, Any]:
    """What a model's config.json holds; nothing where it is not a folder on this machine."""
    path = Path(folder) / "config.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def read_weights(folder: str) -> dict[str, Tensor]:
    """The weights of the adapter in a folder, by PEFT's keys.

    Raises:
        AOTConfigError: there are none, or they cannot be read.
    """
    files = [file for file in (ADAPTER_WEIGHTS, "adapter_model.bin") if (Path(folder) / file).is_file()]
    if not files:  # PEFT would look for them on the hub
        raise AOTConfigError(f"`lora_model_dir: {folder}`: no weights there ({ADAPTER_WEIGHTS})")
    try:
        return load_peft_weights(folder, device="cpu")
    except (SafetensorError, UnpicklingError, EOFError, RuntimeError) as error:
        raise AOTConfigError(f"`lora_model_dir: {folder}`: {files[0]} cannot be read ({error})") from None


def require_all_weights(policy: PeftModel, weights: dict[str, Tensor], folder: str) -> None:
    """The weights are those of the policy's adapter, all of them, and of the right shapes.

    PEFT would leave what is not among them as it was drawn, and some of what does not fit out.
    """
    shapes = {
        name: tensor.shape
        for name, tensor in get_peft_model_state_dict(policy, save_embedding_layers=False).items()
    }
    missing, extra = shapes.keys() - weights.keys(), weights.keys() - shapes.keys()
    # where tokens were added PEFT saves all that there is of the embeddings, the base model's included
    adapter = f".{policy.active_adapter}"
    extra -= {name.replace(adapter, "") for name in policy.state_dict()}
    other = sorted(name for name in shapes.keys() & weights.keys() if shapes[name] != weights[name].shape)
    for names, fault in ((missing, "lacks"), (extra, "holds more than")):
        if names:
            raise AOTConfigError(
                f"`lora_model_dir: {folder}` {fault} the adapter's weights, by {len(names)}, such as "
                f"{min(names)}: it was not saved by PEFT, or for another base_model"
            )
    if other:
        name = other[0]
        raise AOTConfigError(
            f"`lora_model_dir: {folder}`: {name} has the shape {tuple(weights[name].shape)}, and on this "
            f"base_model it must have {tuple(shapes[name])}: it is of another base_model"
        )
