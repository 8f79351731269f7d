"""Repairs of what FSDP2 loses of a trained adapter.

Under FSDP2, axolotl 0.18 and 0.19 save a run's adapter under keys that PEFT does not find again, and
accelerate 1.13 loads a checkpoint's adapter (`state_dict_type: FULL_STATE_DICT`) on the first process
only; both say nothing.
"""

from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

from axolotl_aot.scoring.models import ADAPTER_WEIGHTS, adapter_keys

PREFIX = "base_model.model."  # of PEFT's keys


def load_into_shards(model: nn.Module, checkpoint: str) -> None:
    """Load a checkpoint's adapter into a sharded model, on every process."""
    saved = load_file(Path(checkpoint) / ADAPTER_WEIGHTS)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    state = {name: saved[_saved_key(name)] for name in trained}
    options = StateDictOptions(full_state_dict=True, strict=False)
    set_model_state_dict(model, state, options=options)


def _saved_key(name: str) -> str:
    """PEFT leaves the adapter's name out of the keys that it saves."""
    return name.replace("modules_to_save.default.", "").replace(".default.", ".")


def mend_saved(folder: Path) -> None:
    """Give the weights of a saved adapter the keys that PEFT looks for, if they have others."""
    weights = folder / ADAPTER_WEIGHTS
    if weights.is_file() and not any(key.startswith(PREFIX) for key in adapter_keys(weights)):
        mended = {PREFIX + key: tensor for key, tensor in load_file(weights).items()}
        save_file(mended, weights, metadata={"format": "pt"})
