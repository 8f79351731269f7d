"""What of a YAML a checkpoint brings back, so that another value in the YAML would be ignored on resume.

The optimizer's state holds the learning rate of each group of parameters, weight decay and betas; the
scheduler's the learning rate it starts from. Both replace what the YAML says. Schedulers that are functions
of the step follow the YAML in the number of steps and the warm-up; others bring back these, too. An adapter's
weights are loaded into whatever shape and scale the YAML gives it.
"""

import json
from typing import Any

from peft import PeftConfig
from transformers import Trainer, TrainingArguments

# Keys of the YAML that are training arguments of the same name.
OF_OPTIMIZER = (
    "learning_rate",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_beta3",
    "adam_epsilon",
    "adam_epsilon2",
    "dion_momentum",
    "dion_rank_fraction",
    "dion_rank_multiple_of",
    "embedding_lr",
    "embedding_lr_scale",
    "loraplus_lr_embedding",
    "loraplus_lr_ratio",
    "lr_groups",
    "optim_target_modules",
)
OF_SCHEDULER = ("lr_scheduler_kwargs", "cosine_min_lr_ratio", "cosine_constant_lr_ratio")
# Training arguments that axolotl's own schedulers (one_cycle, rex) bring back, too, by the YAML's name.
OF_FIXED_LENGTH = {"max_steps": "max_steps", "num_epochs": "num_train_epochs", "warmup_steps": "warmup_steps"}
# Of PEFT's configuration, by the YAML's name.
OF_ADAPTER = {
    "lora_r": "r",
    "lora_alpha": "lora_alpha",
    "lora_target_modules": "target_modules",
    "lora_target_parameters": "target_parameters",
    "lora_modules_to_save": "modules_to_save",
    "lora_rank_pattern": "rank_pattern",
    "lora_alpha_pattern": "alpha_pattern",
    "peft_use_rslora": "use_rslora",
    "peft_use_dora": "use_dora",
    "peft_layers_to_transform": "layers_to_transform",
}


def restored_settings(trainer: Trainer, adapter: PeftConfig | None) -> dict[str, Any]:
    """The settings by YAML key, as they are read back from JSON.

    adapter: the configuration of what is trained; None where that is the whole model.
    """
    settings = of_training_arguments(trainer.args)
    if trainer.optimizer_cls_and_kwargs is not None:  # one that transformers does not know
        settings["optimizer"] = trainer.optimizer_cls_and_kwargs[0].__name__
    settings["adapter"] = None if adapter is None else adapter.peft_type.value.lower()
    if adapter is not None:
        settings |= of_adapter(adapter.to_dict())
    metric = trainer.args.metric_for_best_model
    if metric is not None:  # the best value so far is one of this metric
        settings["metric_for_best_model"] = f"eval_{metric.removeprefix('eval_')}"
    return json.loads(json.dumps(settings))


def of_training_arguments(args: TrainingArguments) -> dict[str, Any]:
    """What the states of optimizer and scheduler hold."""
    settings = {key: getattr(args, key) for key in (*OF_OPTIMIZER, *OF_SCHEDULER)}
    settings |= {"dion_lr": args.dion_learning_rate, "optimizer": args.optim, "optim_args": args.optim_args}
    settings["lr_scheduler"] = args.alternate_lr_scheduler_type or args.lr_scheduler_type
    if args.alternate_lr_scheduler_type:
        settings |= {key: getattr(args, name) for key, name in OF_FIXED_LENGTH.items()}
    return settings


def of_adapter(config: dict[str, Any]) -> dict[str, Any]:
    """What an adapter's weights belong to. config: PEFT's, or what a checkpoint's file holds of it."""
    return {key: comparable(config.get(name)) for key, name in OF_ADAPTER.items()}


def comparable(value: Any) -> Any:
    """A value of PEFT's configuration in one form; a set's order is another each time."""
    return sorted(value) if value and isinstance(value, (set, list)) else value or None
