"""Adapters that train the embeddings: what is saved and merged is what was trained.

In many smaller models input and output embeddings are one matrix (`tie_word_embeddings`). An adapter that
trains one of the two, or both apart, makes two matrices of it. PEFT can save and load that;
`axolotl merge-lora` writes one matrix again, and so another model than the trained one.
"""

import logging
from collections.abc import Callable, Iterator
from typing import NamedTuple

from peft import LoraConfig, PeftModel
from peft.tuners.lora import Embedding, LoraLayer
from peft.utils import ModulesToSaveWrapper, TrainableTokensWrapper
from torch import nn
from transformers import PreTrainedModel

from axolotl_aot.errors import AOTConfigError
from axolotl_aot.scoring.models import REFERENCE_ADAPTER

LOG = logging.getLogger(__name__)

DEFAULT, LEGACY = "memory_efficient", "legacy"  # axolotl's values of `merge_method`


class AdapterKind(NamedTuple):
    """A way in which an adapter trains embeddings.

    wrapper: PEFT's class for it. key: the YAML's key; value: what PEFT's config holds of it. alike, apart:
    with which `merge_method` the merged model is the trained one, of a model whose embeddings are one matrix,
    where the adapter trains the two as one, and otherwise. remedy: what to write instead. left_out: the
    class of modules that the default `merge_method` leaves out, of any model.
    """

    wrapper: type[nn.Module]
    key: str
    value: Callable[[LoraConfig], object]
    alike: tuple[str, ...]
    apart: tuple[str, ...]
    remedy: str
    left_out: type[nn.Module] | None


def _in_order(names: str | set[str] | list[str]) -> str | list[str]:
    return names if isinstance(names, str) else sorted(names)


KINDS = (
    AdapterKind(
        ModulesToSaveWrapper,
        "lora_modules_to_save",
        lambda config: _in_order(config.modules_to_save),
        alike=(DEFAULT, LEGACY),
        apart=(LEGACY,),
        # PEFT ties by the names lm_head and embed_tokens, and knows no other
        remedy="name `lm_head` in it and set `peft_ensure_weight_tying: true` to train them as one, or set "
        "`merge_method: legacy` to have them merged into a model of two matrices",
        left_out=None,
    ),
    AdapterKind(
        TrainableTokensWrapper,
        "peft_trainable_token_indices",
        lambda config: config.trainable_token_indices,
        alike=(LEGACY,),
        apart=(),
        remedy="write the tokens as a list without names of modules, so that they are trained in both, and "
        "set `merge_method: legacy`",
        left_out=TrainableTokensWrapper,
    ),
    AdapterKind(
        LoraLayer,
        "lora_target_modules",
        lambda config: _in_order(config.target_modules),
        alike=(),
        apart=(),
        remedy="take the embeddings out of it; to train them, name `lm_head` in `lora_modules_to_save` and "
        "set `peft_ensure_weight_tying: true`",
        left_out=Embedding,
    ),
)


def require_mergeable(policy: PeftModel, merge_method: str | None) -> None:
    """The model that `axolotl merge-lora` makes of this adapter will be the trained one.

    merge_method: the YAML's. Where the default loses what was trained of embeddings that are two matrices,
    a warning says so.

    Raises:
        AOTConfigError: the embeddings are one matrix, and the merged model would be another than the trained.
    """
    model, peft_config = policy.get_base_model(), policy.peft_config[policy.active_adapter]
    ends = [end for end in (model.get_input_embeddings(), model.get_output_embeddings()) if end is not None]
    method = merge_method or DEFAULT
    if len(ends) == 2 and _parameters(ends[0]) & _parameters(ends[1]):
        alike = _parameters(ends[0], trained=True) == _parameters(ends[1], trained=True)
        for kind in _kinds(ends):
            if method not in (kind.alike if alike else kind.apart):
                raise AOTConfigError(
                    f"`{kind.key}: {kind.value(peft_config)}` with `merge_method: {method}`: the input and "
                    "output embeddings of this base model are one matrix (tie_word_embeddings), and axolotl "
                    f"merge-lora would make another model than the trained one: {kind.remedy}"
                )
        return
    for kind in KINDS:
        if method == DEFAULT and kind.left_out and any(isinstance(end, kind.left_out) for end in ends):
            LOG.warning(
                "`%s: %s` trains embeddings, which axolotl merge-lora leaves out of the merged model by "
                "default: set `merge_method: legacy` to have them merged",
                kind.key,
                kind.value(peft_config),
            )


def _kinds(ends: list[nn.Module]) -> Iterator[AdapterKind]:
    """In which ways the adapter trains these embeddings."""
    return (kind for kind in KINDS if any(isinstance(end, kind.wrapper) for end in ends))


def _parameters(module: nn.Module, trained: bool = False) -> set[int]:
    """Which parameters are a module's, whatever their names in it; trained: only those that are."""
    return {id(p) for p in module.parameters() if p.requires_grad or not trained}


def save_shared_weights_once(model: PreTrainedModel | PeftModel) -> None:
    """Let axolotl save the model that it loaded, as it does after the adapter in every RL run.

    The adapter's modules are in that model, and transformers refuses to save a matrix that they have given
    names that it does not know. All but the first of a matrix's names are left out of what it saves, and
    so is the adapter that training started from, which was the reference.
    """
    model = model.get_base_model() if isinstance(model, PeftModel) else model
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    # transformers has no public place for it
    model._keys_to_ignore_on_save = {
        *(name for same in names.values() for name in same[1:]),
        *(name for name in model.state_dict() if REFERENCE_ADAPTER in name.split(".")),
    }
