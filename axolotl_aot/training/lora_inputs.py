"""The inputs of LoRA's projections under autocast, where PEFT would copy each of them twice."""

from typing import Any

import torch
from peft import PeftModel
from peft.tuners import lora
from torch import nn


def spare_input_copies(policy: PeftModel) -> None:
    """Let autocast alone choose the type that LoRA's matrices are multiplied in.

    PEFT casts a projection's input to the type of LoRA's weights, which is float32 over a bfloat16 model;
    then autocast casts it back. Sparing that changes no bit of the result. DoRA goes on in float32 with the
    copy, and keeps it. So does what runs outside of autocast: a layer looks at each forward pass, also at one
    that gradient checkpointing repeats.
    """
    for module in policy.modules():
        if isinstance(module, lora.Linear) and not module.lora_variant:
            module.register_forward_pre_hook(_cast_unless_autocast)


def _cast_unless_autocast(module: nn.Module, args: tuple[Any, ...]) -> None:
    # PEFT's switch, which its `disable_input_dtype_casting` turns for all layers at once
    module.cast_input_dtype_enabled = not torch.is_autocast_enabled(args[0].device.type)
