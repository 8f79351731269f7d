"""The precision in which an adapter is trained on a 4-bit or 8-bit base model, where TRL and PEFT change it.

TRL rounds all that is trained there to bfloat16, as the paper on QLoRA has it. PEFT makes float32 of that
again where it loads a checkpoint, and the run would go on in another precision than it was begun in.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft import PeftModel
from peft.utils import ModulesToSaveWrapper, TrainableTokensWrapper
from torch import Tensor, nn


def restore_copies(policy: PeftModel) -> None:
    """Give the adapter's copies of weights of the base model the values of these again.

    LoRA's matrices lose nothing by being rounded before training: their product is 0. A trained copy of the
    embeddings (`lora_modules_to_save`) or of some of their rows (`peft_trainable_token_indices`) would no
    longer be the reference's.
    """
    for copy, original in _copies(policy):
        if torch.finfo(copy.dtype).eps > torch.finfo(original.dtype).eps:
            # what is trained is not kept in float16, which torch's gradient scaler refuses
            dtype = torch.float32 if original.dtype == torch.float16 else original.dtype
            copy.data = original.detach().to(dtype, copy=True)


def _copies(policy: PeftModel) -> Iterator[tuple[Tensor, Tensor]]:
    """What the adapter trains in place of weights of the base model, each with these weights."""
    for module in policy.modules():
        if isinstance(module, ModulesToSaveWrapper):
            for copies in module.modules_to_save.values():
                yield from zip(copies.parameters(), module.original_module.parameters(), strict=True)
        elif isinstance(module, TrainableTokensWrapper):
            rows = module.token_adapter
            for adapter, trained in rows.trainable_tokens_delta.items():
                yield trained, rows.trainable_tokens_original[adapter]


@contextmanager
def kept_precision(model: nn.Module) -> Iterator[None]:
    """What is trained has afterwards the precision that it had before."""
    before = {name: p.dtype for name, p in model.named_parameters() if p.requires_grad}
    yield
    for name, parameter in model.named_parameters():
        if parameter.dtype != before.get(name, parameter.dtype):
            parameter.data = parameter.data.to(before[name])
