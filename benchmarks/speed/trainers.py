"""A contender's trainer, ready to train a case on its tokens.

What only one contender needs is imported by it: an interpreter without axolotl trains with TRL's trainer.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from peft import LoraConfig, prepare_model_for_kbit_training
from transformers import PreTrainedModel, Trainer, set_seed
from trl import DPOConfig, DPOTrainer

from benchmarks.speed.cases import LIGER, MICRO, OURS, PEER, PLAIN, TRL, Case
from benchmarks.speed.memory import Meter
from benchmarks.speed.models import load_model
from tests.tiny import make_tokenizer

SEED = 42


class Parts(NamedTuple):
    """What every trainer is made of. reference: where there is no adapter to switch off."""

    model: PreTrainedModel
    reference: PreTrainedModel | None
    args: dict[str, Any]
    common: dict[str, Any]


def make_trainer(contender: str, case: Case, tokens: dict[str, list], folder: Path) -> tuple[Trainer, int]:
    """The trainer, and the bytes that the process held when the models were loaded."""
    model = load_model(case)
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    if case.adapter == "qlora":
        dtype = model.dtype
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=case.checkpoints)
        _hold_in(dtype, model)
    full = case.adapter == "full"
    reference = load_model(case).eval().requires_grad_(False) if full else None
    held = Meter().now()
    common = {
        "train_dataset": Dataset.from_dict(tokens),
        "processing_class": make_tokenizer(["a b c"]),
        "peft_config": None if full else lora,
    }
    set_seed(SEED)  # LoRA is drawn alike for all
    parts = Parts(model, reference, _arguments(case, folder), common)
    return CONTENDERS[contender](parts, case, folder), held


def _hold_in(dtype: torch.dtype, model: PreTrainedModel) -> None:
    """Norms and embeddings, which PEFT makes float32 beside 4-bit weights; axolotl casts them back."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)


def _arguments(case: Case, folder: Path) -> dict[str, Any]:
    cuda = torch.cuda.is_available()
    return {
        "output_dir": str(folder / "out"),
        "per_device_train_batch_size": case.micro_batch,
        "per_device_eval_batch_size": case.micro_batch,
        "gradient_accumulation_steps": case.accumulation,
        "max_steps": case.steps + 1,
        "learning_rate": 1e-5,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "bf16": cuda,
        "use_cpu": not cuda,
        "max_length": None,
        "gradient_checkpointing": case.checkpoints,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "disable_tqdm": True,
        "beta": 0.1,
        "seed": SEED,
    }


class Tokenized(DPOTrainer):
    """TRL's trainer on the tokens as they are."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
        return dataset


def _trls(loss: dict[str, Any], parts: Parts, case: Case, folder: Path) -> Trainer:
    config = DPOConfig(**parts.args, **loss, precompute_ref_log_probs=case.cached)
    return Tokenized(parts.model, parts.reference, args=config, **parts.common)


def _ours(scope: str, parts: Parts, case: Case, folder: Path, kernels: bool = True) -> Trainer:
    from axolotl.core.trainers.dpo.args import AxolotlDPOConfig

    from axolotl_aot.config import AOTArgs
    from axolotl_aot.training.run_setup import AOTSetup
    from axolotl_aot.training.trainers import AOTTrainer

    setup = AOTSetup(
        AOTArgs(aot_scope=scope, **case.options),
        reference_folder=folder / "references" if case.cached else None,
    )
    config = AxolotlDPOConfig(**parts.args)
    trainer = AOTTrainer(parts.model, parts.reference, args=config, callbacks=[setup], **parts.common)
    if kernels and case.adapter != "full":
        _apply_kernels(trainer, parts.model, case, folder)
    return trainer


def _apply_kernels(trainer: Trainer, model: PreTrainedModel, case: Case, folder: Path) -> None:
    """LoRA kernels as the plugin chooses them for a YAML that names none: on a GPU, those that fit."""
    from axolotl.utils.dict import DictDefault

    from axolotl_aot.training.lora_kernels import apply_lora_kernels

    model.config.save_pretrained(folder / "model")  # axolotl reads it from there
    keys = {"adapter": case.adapter, "load_in_4bit": case.adapter == "qlora", "model_config_type": "llama"}
    apply_lora_kernels(DictDefault({**keys, "base_model": str(folder / "model")}), trainer)


_TRLS_AOT = partial(_trls, {"loss_type": ["aot"]})
CONTENDERS: dict[str, Callable[[Parts, Case, Path], Trainer]] = {
    TRL: _TRLS_AOT,
    PEER: _TRLS_AOT,
    LIGER: partial(_trls, {"loss_type": ["sigmoid"], "use_liger_kernel": True}),
    MICRO: partial(_ours, "micro_batch"),
    OURS: partial(_ours, "effective_batch"),
    PLAIN: partial(_ours, "effective_batch", kernels=False),
}
