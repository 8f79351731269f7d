"""Trained adapters, loaded from their files."""

from pathlib import Path

from peft import PeftModel, get_peft_model_state_dict
from safetensors import safe_open
from transformers import PreTrainedModel

from axolotl_aot.errors import AOTConfigError

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"


def load_adapter(model: PreTrainedModel | PeftModel, folder: str, name: str = "default") -> PeftModel:
    """The model with the trained adapter in `folder`, and no other, at work.

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
    weights = Path(folder) / WEIGHTS
    if weights.is_file():  # else it is the older adapter_model.bin
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
