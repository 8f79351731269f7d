"""Keys that nothing would read in a run of `rl: aot...`, so that it would go on as without them.

axolotl's validation drops what its schema does not know. Of the 400 keys that it knows, many are read for
supervised fine-tuning or for another `rl` only; the tables here name them. Every other key of the schema has
an effect, or none that anyone would miss: a table in `tests/test_keys.py` says which.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from difflib import get_close_matches
from typing import Any, get_args, get_origin

from axolotl.cli.args import EvaluateCliArgs, InferenceCliArgs, PreprocessCliArgs, TrainerCliArgs
from axolotl.integrations.base import PluginManager
from axolotl.utils.import_helper import get_cls_from_module_str
from axolotl.utils.schemas.config import AxolotlInputConfig
from pydantic import AliasChoices, BaseModel
from pydantic.fields import FieldInfo
from transformers.trainer_pt_utils import AcceleratorConfig

from axolotl_aot.errors import AOTConfigError

LOG = logging.getLogger(__name__)

# Keys that axolotl's causal builder hands to its trainer, or its supervised data loading reads; its RL
# builder and this package's data do neither.
SUPERVISED_ONLY = (
    "batch_flattening",
    "bench_dataset",
    "bench_split",
    "curriculum_sampling",
    "dataloader_drop_last",
    "dataset_keep_in_memory",
    "do_bench_eval",
    "do_causal_lm_eval",
    "eaft_alpha",
    "eaft_k",
    "eval_causal_lm_metrics",
    "eval_sequence_len",
    "eval_table_size",
    "fix_untrained_tokens",
    "generate_samples",
    "generation_do_sample",
    "generation_max_new_tokens",
    "generation_prompt_ratio",
    "generation_temperature",
    "generation_top_k",
    "generation_top_p",
    "group_by_length",
    "image_resize_algorithm",
    "jagged_restart_anneal_steps",
    "jagged_restart_steps",
    "jagged_restart_warmup_steps",
    "lisa_layers_attribute",
    "lisa_n_layers",
    "lisa_step_interval",
    "loss_watchdog_patience",
    "loss_watchdog_threshold",
    "lr_quadratic_warmup",
    "min_sample_len",
    "neftune_noise_alpha",
    "noisy_embedding_alpha",
    "num_generation_samples",
    "preprocess_iterable",
    "relora",
    "relora_cpu_offload",
    "relora_prune_method",
    "relora_prune_ratio",
    "role_boundaries",
    "total_num_tokens",
    "total_supervised_tokens",
    "use_eaft",
)
_PACKING = (
    "eval_sample_packing",
    "max_packed_sequence_len",
    "multipack_real_batches",
    "sample_packing",
    "sample_packing_bin_size",
    "sample_packing_eff_est",
    "sample_packing_group_size",
    "sample_packing_mp_start_method",
    "sample_packing_sequentially",
)
_PRETRAINING = (
    "pretrain_multipack_attn",
    "pretrain_multipack_buffer_size",
    "pretraining_dataset",
    "pretraining_sample_concatenation",
    "streaming",
    "streaming_multipack_buffer_size",
)
_POSE = ("pose_max_context_len", "pose_num_chunks", "pose_split_on_token_ids", "use_pose")
_LOSS_OF_LABELS = (
    "chunked_cross_entropy",
    "chunked_cross_entropy_num_chunks",
    "cut_cross_entropy",
    "flash_attn_cross_entropy",
    "liger_cross_entropy",
    "liger_fused_linear_cross_entropy",
    "liger_use_token_scaling",
)
_COMPILE = ("torch_compile", "torch_compile_backend", "torch_compile_mode", "torch_compile_options")
_FOUND_OUT = ("device", "local_rank", "world_size")
_OTHER_MODEL = ("center_rewards_coefficient", "num_labels", "process_reward_model", "reward_model")
_GONE = (
    "dpo_generate_during_eval",
    "dpo_norm_loss",
    "dpo_use_logits_to_keep",
    "flash_attn_rms_norm",
    "rpo_alpha",
    "s2_attention",
)
_OTHER_LOSS = "it belongs to another rl type; remove it"

# Keys that AOT would have to ignore, and what to do about each.
FOREIGN_KEYS = {
    "dpo_loss_type": "the loss is set by aot_penalty and aot_dominance; remove it",
    "dpo_loss_weights": "AOT has one loss, set by aot_penalty and aot_dominance; remove it",
    "dpo_use_weighting": "weights per pair have no meaning after a sort; remove it",
    "dpo_use_liger_kernel": "Liger's fused DPO loss is not AOT's; remove it",
    "dpo_label_smoothing": "use aot_label_smoothing",
    "dpo_padding_free": "TRL has switched it off; use aot_padding_free",
    "dpo_beta": "use rl_beta",
    "pad_to_multiple_of": "axolotl's collator for it does not fit TRL's data; remove it",
    "kto_desirable_weight": "both labels have the same mass in AOT, however many rows each has; remove it",
    "kto_undesirable_weight": "both labels have the same mass in AOT, however many rows each has; remove it",
    **dict.fromkeys(SUPERVISED_ONLY, "axolotl reads it for supervised fine-tuning only; remove it"),
    **dict.fromkeys(_PACKING, "preference data are not packed; see aot_padding_free; remove it"),
    **dict.fromkeys(_PRETRAINING, "preference data are not streamed, and are no pre-training; remove it"),
    **dict.fromkeys(_POSE, "axolotl shifts the positions of supervised data only; remove it"),
    **dict.fromkeys(_LOSS_OF_LABELS, "log-probabilities are computed in chunks without it; remove it"),
    **dict.fromkeys(
        _COMPILE,
        "log-probabilities are computed within the model's forward pass, which torch cannot compile; "
        "remove it",
    ),
    **dict.fromkeys(_FOUND_OUT, "axolotl takes it from the machine and the launcher; remove it"),
    **dict.fromkeys(_OTHER_MODEL, "it belongs to the training of a reward model; remove it"),
    **dict.fromkeys(_GONE, "axolotl has given it up; remove it"),
    "train_on_inputs": "a preference is between completions; prompts are never trained on; remove it",
    "max_prompt_len": "sequence_len is the limit of prompt and completion together, and "
    "excess_length_strategy says what becomes of what is longer",
    "dataset_shard_num": "use shards in the entry of datasets",
    "dataset_shard_idx": "use shards_idx in the entry of datasets",
    "eot_tokens": "the tokens that end a turn are those that the chat template writes; remove it",
    "peft_autocast_adapter_dtype": "TRL makes the adapter, and chooses its precision; remove it",
    "rl_adapter_ref_model": "axolotl's validation drops it, and the reference of an adapter is the model "
    "without it; remove it",
    "float32": "set bf16 and fp16 to false instead",
    "fsdp_final_state_dict_type": "use final_state_dict_type in fsdp_config",
    "layer_offloading": "TRL's trainers do not read it; remove it",
    "heads_k_stride": "it belongs to context_parallel_size; remove it",
    "ring_attn_func": "it belongs to context_parallel_size; remove it",
    "lr_div_factor": "axolotl does not read it; use lr_scheduler_kwargs, such as {div_factor: 25} for "
    "lr_scheduler: one_cycle",
    "rope_scaling": "put it under model_config",
    "auto_find_batch_size": "axolotl's RL types do not know it, and it would change the effective batch, "
    "which is what AOT sorts; set micro_batch_size and gradient_accumulation_steps",
    "trl": "axolotl reads it for GRPO only; remove it",
    "ebft": _OTHER_LOSS,
    "orpo_alpha": _OTHER_LOSS,
    "simpo_gamma": _OTHER_LOSS,
    "cpo_alpha": _OTHER_LOSS,
}

# Plugins of axolotl's that do nothing else, and do it without being asked: the key that switches them off.
LOSS_PLUGINS = {"axolotl.integrations.cut_cross_entropy.CutCrossEntropyPlugin": "cut_cross_entropy"}

OF_ADAPTERS = (
    "lora_alpha",
    "lora_alpha_pattern",
    "lora_embedding_kernel",
    "lora_fan_in_fan_out",
    "lora_mlp_kernel",
    "lora_model_dir",
    "lora_modules_to_save",
    "lora_o_kernel",
    "lora_on_cpu",
    "lora_qkv_kernel",
    "lora_r",
    "lora_rank_pattern",
    "lora_target_linear",
    "lora_target_modules",
    "lora_target_parameters",
    "loraplus_lr_ratio",
    "peft",
    "peft_ensure_weight_tying",
    "peft_init_lora_weights",
    "peft_layer_replication",
    "peft_layers_pattern",
    "peft_layers_to_transform",
    "peft_trainable_token_indices",
    "peft_use_dora",
    "peft_use_rslora",
)
# Keys that are read where another key has one of these values only; without values: where it is set.
NEEDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "adam_beta3": ("optimizer", ("came_pytorch",)),
    "adam_epsilon2": ("optimizer", ("came_pytorch",)),
    "dion_lr": ("optimizer", ("dion",)),
    "dion_momentum": ("optimizer", ("dion",)),
    "dion_rank_fraction": ("optimizer", ("dion",)),
    "dion_rank_multiple_of": ("optimizer", ("dion",)),
    "torchdistx_path": ("optimizer", ("adamw_anyprecision",)),
    **{
        f"qgalore_{name}": ("optimizer", ("q_galore_adamw8bit",))
        for name in (
            "rank",
            "update_proj_gap",
            "scale",
            "proj_type",
            "proj_quant",
            "proj_bits",
            "proj_group_size",
            "cos_threshold",
            "gamma_proj",
            "queue_size",
        )
    },
    "cosine_min_lr_ratio": ("lr_scheduler", ("cosine", "rex")),
    "cosine_constant_lr_ratio": ("cosine_min_lr_ratio", ()),
    "default_system_message": ("chat_template", ("chatml",)),
    "fp32_norm_classes": ("fp32_norms", ()),
    "fp8_config": ("fp8", ()),
    "fp8_enable_fsdp_float8_all_gather": ("fp8", ()),
    "hub_revision": ("hub_model_id", ()),
    "hub_strategy": ("hub_model_id", ()),
    "loraplus_lr_embedding": ("loraplus_lr_ratio", ()),
    "model_quantization_config_kwargs": ("model_quantization_config", ()),
    "profiler_steps_start": ("profiler_steps", ()),
    "scaling_softmax_bias": ("scaling_softmax", ()),
    "scaling_softmax_factor": ("scaling_softmax", ()),
    "tiled_mlp_num_shards": ("tiled_mlp", ()),
    **dict.fromkeys(OF_ADAPTERS, ("adapter", ())),
}

# What people know from transformers, TRL and PEFT under another name.
OTHER_NAMES = {
    "beta": "rl_beta",
    "lora_rank": "lora_r",
    "lr_scheduler_type": "lr_scheduler",
    "max_length": "sequence_len",
    "max_seq_length": "sequence_len",
    "model_name_or_path": "base_model",
    "num_train_epochs": "num_epochs",
    "optim": "optimizer",
    "per_device_eval_batch_size": "eval_batch_size",
    "per_device_train_batch_size": "micro_batch_size",
}

# Keys that stand in axolotl's own examples of preference training, where nothing reads them either: the log
# says so. The model is what it would be without them.
WARNED_OF = {
    "eval_max_new_tokens": "nothing is generated in evaluation",
    "lora_dropout": "TRL switches dropout off for preference training",
    "pad_to_sequence_len": "AOT puts sequences together without padding, see aot_padding_free",
}
# Keys of which false asks for something, too, other than no value.
FALSE_IS_A_WISH = ("peft_autocast_adapter_dtype",)

# Options of axolotl's commands, which the command line puts into the config, and what commands add to it.
OPTIONS = (EvaluateCliArgs, InferenceCliArgs, PreprocessCliArgs, TrainerCliArgs)
SET_BY_COMMANDS = {"inference"}
OF_ANOTHER_CHECK = {"expert_parallel_size"}  # a plugin's; see `checks.check_parallelism`

# Their entries are checked by what reads them, `axolotl_aot.data`.
LISTS_OF_ENTRIES = ("datasets", "test_datasets")
FSDP_PREFIX = "fsdp_"  # which axolotl takes off the names in fsdp_config


def check_keys(cfg: Mapping[str, Any], rl: str, own: type[BaseModel]) -> None:
    """Every key that is set will be read; warns of those in `WARNED_OF`.

    own: the keys of this package, which axolotl's schema is about to get.

    Raises:
        AOTConfigError: a key that nothing knows, or that nothing would read with this `rl`.
    """
    schema = _schema(own)
    for key, advice in FOREIGN_KEYS.items():
        if _asks_for_something(cfg, key, schema):
            raise AOTConfigError(f"`{key}: {cfg[key]}` has no effect with `rl: {rl}`: {advice}")
    for plugin in _loss_plugins(cfg):
        raise AOTConfigError(
            f"`plugins: {plugin}` has no effect with `rl: {rl}`: log-probabilities are computed in chunks "
            f"without it; remove it, or set {LOSS_PLUGINS[plugin]} to false"
        )
    known = _names(schema)
    for key, value in cfg.items():
        if value is not None and key not in known | _allowed():
            meant = OTHER_NAMES.get(key) or _closest(key, known)
            raise AOTConfigError(
                f"`{key}` is not a key of axolotl, of axolotl-aot or of the plugins that the YAML lists, and "
                f"would have no effect. {f'Did you mean {meant!r}?' if meant else 'Remove it.'}"
            )
    for key, field in schema.items():
        if key not in LISTS_OF_ENTRIES:
            _check_nested(key, cfg.get(key), field.annotation)
    known = {field.name for field in fields(AcceleratorConfig)}
    _check_names("accelerator_config", cfg.get("accelerator_config") or {}, known)
    for key, (other, values) in NEEDS.items():
        if _asks_for_something(cfg, key, schema) and not _has(cfg, other, values, schema):
            needed = " or ".join(f"`{other}: {value}`" for value in values) or f"`{other}`"
            raise AOTConfigError(f"`{key}: {cfg[key]}` has no effect without {needed}; remove it")
    for key, reason in WARNED_OF.items():
        if _asks_for_something(cfg, key, schema):
            LOG.warning("%s has no effect: %s", key, reason)


def without_unread_keys(cfg: Mapping[str, Any], own: type[BaseModel]) -> dict[str, Any]:
    """A config without the keys that `check_keys` refuses for their names, or for want of another."""
    schema = _schema(own)
    known = _names(schema) | _allowed()
    idle = {key for key, needed in NEEDS.items() if not _has(cfg, *needed, schema)}
    kept = {k: v for k, v in cfg.items() if k in known and k not in FOREIGN_KEYS and k not in idle}
    return {**kept, **{LOSS_PLUGINS[plugin]: False for plugin in _loss_plugins(cfg)}}


def _loss_plugins(cfg: Mapping[str, Any]) -> list[str]:
    listed = [plugin for plugin in LOSS_PLUGINS if plugin in (cfg.get("plugins") or [])]
    return [plugin for plugin in listed if cfg.get(LOSS_PLUGINS[plugin]) is not False]


# --- axolotl's schema ---------------------------------------------------------------------------


def _schema(own: type[BaseModel]) -> dict[str, FieldInfo]:
    """The fields of axolotl's schema, with those of all registered plugins and of this package."""
    plugins = PluginManager.get_instance().get_input_args()
    models = [AxolotlInputConfig, *map(get_cls_from_module_str, plugins), own]
    return {name: field for model in models for name, field in model.model_fields.items()}


def _names(schema: Mapping[str, FieldInfo]) -> set[str]:
    """All names under which a YAML may write the fields."""
    aliases = [field.validation_alias for field in schema.values() if field.validation_alias]
    choices = [alias.choices if isinstance(alias, AliasChoices) else [alias] for alias in aliases]
    return {*schema, *(name for names in choices for name in names)}


def _allowed() -> set[str]:
    """What may stand in the config besides the schema's keys."""
    options = {option.name for command in OPTIONS for option in fields(command)}
    return options | SET_BY_COMMANDS | OF_ANOTHER_CHECK


def _asks_for_something(cfg: Mapping[str, Any], key: str, schema: Mapping[str, FieldInfo]) -> bool:
    """Whether a key is neither empty, nor off, nor what it is without being set."""
    value = cfg.get(key)
    if isinstance(value, Mapping):
        return any(part not in (None, False) for part in value.values())
    if not value:
        return value is False and key in FALSE_IS_A_WISH
    return key not in schema or value != schema[key].get_default(call_default_factory=True)


def _has(cfg: Mapping[str, Any], key: str, values: tuple[str, ...], schema: Mapping[str, FieldInfo]) -> bool:
    """Whether a key has one of the values, by default, too; without values: whether it is set."""
    value = cfg.get(key)
    if value is None and key in schema:  # another version of axolotl may not have it
        value = schema[key].get_default(call_default_factory=True)
    return value in values if values else bool(value)


def _closest(word: Any, known: Iterable[str]) -> str | None:
    return next(iter(get_close_matches(str(word), known, n=1, cutoff=0.7)), None)


def _check_nested(where: str, value: Any, annotation: Any) -> None:
    """The names under a key are those of its schema: axolotl's validation drops all others."""
    if isinstance(value, list):
        for entry in value:
            _check_nested(where, entry, annotation)
    models = list(_models_in(annotation))
    if not isinstance(value, Mapping) or not models:
        return
    inner = {name: field for model in models for name, field in model.model_fields.items()}
    if not any(model.model_config.get("extra") == "allow" for model in models):
        _check_names(where, value, _names(inner))
    for name, field in inner.items():
        _check_nested(f"{where}: {name}", value.get(name), field.annotation)


def _check_names(where: str, value: Mapping[str, Any], known: set[str]) -> None:
    for name, part in value.items():
        bare = str(name).removeprefix(FSDP_PREFIX) if where == "fsdp_config" else name
        if part is not None and name not in known and bare not in known:
            close = _closest(name, known)
            hint = f"Did you mean {close!r}?" if close else f"Known: {', '.join(sorted(known))}."
            raise AOTConfigError(
                f"`{where}: {name}` is not a key of axolotl, and would have no effect. {hint}"
            )


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The schemas in a type such as `list[Model] | None`; none where any mapping will do."""
    parts = get_args(annotation)
    if any(get_origin(part) is dict for part in parts):
        return
    if isinstance(annotation, type) and get_origin(annotation) is None and issubclass(annotation, BaseModel):
        yield annotation
    for part in parts:
        yield from _models_in(part)
