"""Files of trained adapters: loaded for evaluation, and mended where FSDP2 loses something of them.

Under FSDP2, axolotl 0.18 and 0.19 save a run's adapter under keys that PEFT does not find again, and
accelerate 1.13 loads a checkpoint's adapter (`state_dict_type: FULL_STATE_DICT`) on the first process
only; both say nothing.

May import `axolotl_aot.checks`; peft, safetensors, torch and transformers, and nothing of axolotl.
"""

from pathlib import Path

from peft import PeftModel, get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from transformers import PreTrainedModel

from axolotl_aot.checks import AOTConfigError

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."  # of PEFT's keys


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
        missing = keys - _keys(weights)
        if missing:
            raise AOTConfigError(
                f"{weights} lacks {len(missing)} of the adapter's weights, such as {min(missing)}: it was "
                "not saved by PEFT, or for another base_model"
            )
    return policy


def load_into_shards(model: nn.Module, checkpoint: str) -> None:
    """Load a checkpoint's adapter into a sharded model, on every process."""
    saved = load_file(Path(checkpoint) / WEIGHTS)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    state = {name: saved[_saved_key(name)] for name in trained}
    options = StateDictOptions(full_state_dict=True, strict=False)
    set_model_state_dict(model, state, options=options)


def _saved_key(name: str) -> str:
    """PEFT leaves the adapter's name out of the keys that it saves."""
    return name.replace("modules_to_save.default.", "").replace(".default.", ".")


def mend_saved(folder: Path) -> None:
    """Give the weights of a saved adapter the keys that PEFT looks for, if they have others."""
    weights = folder / WEIGHTS
    if weights.is_file() and not any(key.startswith(PREFIX) for key in _keys(weights)):
        mended = {PREFIX + key: tensor for key, tensor in load_file(weights).items()}
        save_file(mended, weights, metadata={"format": "pt"})


def _keys(weights: Path) -> set[str]:
    """The keys of a file of weights, without reading the weights."""
    with safe_open(weights, framework="pt") as file:
        return set(file.keys())
