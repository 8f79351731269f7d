"""`lora_model_dir` in training: the adapter that a run starts from, and the policy it makes as the reference.

So rounds of training follow each other: each starts from the last one's adapter, and its rewards are
measured against the policy that the round began with. That policy is a second, frozen copy of the adapter
on the same base model. Nothing is merged: a base model in 4 bits stays in 4 bits, where merging would round
what was trained away, and a round takes no disk for a merged model and no memory for a second base model.
"""

import copy
import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from peft import PeftModel, set_peft_model_state_dict
from torch import Tensor

from axolotl_aot.scoring.models import REFERENCE_ADAPTER
from axolotl_aot.training.restored_settings import of_adapter
from axolotl_aot.training.start_checks import (
    read_weights,
    require_all_weights,
    require_same_adapter,
    require_start,
)


@dataclass(frozen=True)
class StartAdapter:
    """What a run started from. folder: as the YAML names it. digest: of its weights and of what they mean."""

    folder: str
    digest: str


def start_from(policy: PeftModel, folder: str, output_dir: str | None) -> StartAdapter:
    """Give the policy's new adapter the weights in a folder, and add a frozen copy as the reference.

    From then on `save_pretrained` saves the trained adapter only.

    Raises:
        AOTConfigError: what is in the folder cannot be the start of this run.
    """
    found = require_start(folder, output_dir)
    require_same_adapter(policy, found, folder)
    weights = read_weights(folder)
    require_all_weights(policy, weights, folder)
    start = StartAdapter(folder, _digest(weights, of_adapter(found.to_dict())))
    trained = policy.active_adapter
    set_peft_model_state_dict(policy, weights, trained)
    _add_reference(policy)
    save = functools.partial(policy.save_pretrained, selected_adapters=[trained])
    policy.save_pretrained = functools.partial(_save_without_reference, policy, save)
    return start


def _add_reference(policy: PeftModel) -> None:
    """A second adapter with the very values of the first, in its precision; nothing of it is trained."""
    trained = policy.active_adapter
    requires_grad = {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
    config = copy.deepcopy(policy.peft_config[trained])
    config.inference_mode = True
    policy.add_adapter(REFERENCE_ADAPTER, config, autocast_adapter_dtype=False)
    policy.set_adapter(trained)
    parameters = dict(policy.named_parameters(remove_duplicate=False))  # tied ones by both of their names
    for name, parameter in parameters.items():
        parts = name.split(".")
        if trained in parts:
            twin = ".".join(REFERENCE_ADAPTER if part == trained else part for part in parts)
            parameters[twin].data = parameter.detach().clone()
    for name, parameter in policy.named_parameters():
        parameter.requires_grad_(name in requires_grad)


def _save_without_reference(
    policy: PeftModel,
    save: Callable[..., None],
    *args: object,
    state_dict: Mapping[str, Tensor] | None = None,
    **more: object,
) -> None:
    """Save an adapter from weights without the reference's.

    Where tokens were added, PEFT 0.19 (of axolotl 0.18) saves the embeddings of all adapters, whichever
    are selected; a next round refuses a start with weights that are not its adapter's.
    """
    weights = policy.state_dict() if state_dict is None else state_dict
    own = {name: tensor for name, tensor in weights.items() if REFERENCE_ADAPTER not in name.split(".")}
    save(*args, state_dict=own, **more)


def _digest(weights: dict[str, Tensor], settings: dict) -> str:
    digest = hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=8)
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
