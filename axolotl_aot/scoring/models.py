"""Trained models, loaded from their files as adapters or whole; and what lies under PEFT's wrapping."""

import logging
from pathlib import Path

from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel

from axolotl_aot.errors import AOTConfigError

LOG = logging.getLogger(__name__)

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
REFERENCE_ADAPTER = "ref"  # TRL's name for an adapter that makes the reference


def without_adapter(model: nn.Module) -> PreTrainedModel:
    """The causal language model itself, without PEFT's wrapping if it has any."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def load_adapter(model: PreTrainedModel | PeftModel, folder: str, name: str = "default") -> PeftModel:
    """The model with the trained adapter in `folder`, and no other, active.

    name: what PEFT is to call it; a model may have several.

    Raises:
        AOTConfigError: the file lacks weights of the adapter, which PEFT would leave untrained.
    """
    if isinstance(model, PeftModel):
        model.load_adapter(folder, name)
        model.set_adapter(name)
        policy = model
    else:
        policy = PeftModel.from_pretrained(model, folder, adapter_name=name)
    weights = Path(folder) / ADAPTER_WEIGHTS
    if weights.is_file():  # otherwise it is the older adapter_model.bin
        keys = {key for key in get_peft_model_state_dict(policy, adapter_name=name) if "lora_" in key}
        missing = keys - adapter_keys(weights)
        if missing:
            raise AOTConfigError(
                f"{weights} lacks {len(missing)} of the adapter's weights, such as {min(missing)}: it was "
                "not saved by PEFT, or for another base_model"
            )
    return policy


def adapter_keys(weights: Path) -> set[str]:
    """The keys of a file of weights, without reading the weights."""
    with safe_open(weights, framework="pt") as file:
        return set(file.keys())


def another_base(adapter: PeftConfig, base: str) -> str | None:
    """The base model that an adapter was trained on, by its name, where that is not `base`."""
    trained_on = adapter.base_model_name_or_path
    if not trained_on or Path(trained_on).resolve() == Path(base).resolve():
        return None
    return trained_on


def trained_folder(lora_model_dir: str | None, output_dir: str) -> str:
    """Where the adapter is that a YAML has trained, for what comes after training.

    That is `lora_model_dir`, as for axolotl's own commands; a warning says so where the key may have been
    meant as the start of the training whose result is in `output_dir`.
    """
    if not lora_model_dir:
        return output_dir
    other = Path(output_dir)
    if (other / ADAPTER_WEIGHTS).is_file() and other.resolve() != Path(lora_model_dir).resolve():
        LOG.warning(
            "`lora_model_dir: %s` is what is scored; for the adapter in output_dir, %s, leave the key out of "
            "the YAML",
            lora_model_dir,
            output_dir,
        )
    return lora_model_dir


def load_whole_model(like: PreTrainedModel, folder: str) -> PreTrainedModel:
    """The model in `folder`, loaded as another of its kind was: same class, precision and attention."""
    attention = like.config._attn_implementation  # transformers has no public place for it
    return type(like).from_pretrained(folder, dtype=like.dtype, attn_implementation=attention)
