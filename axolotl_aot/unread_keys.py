"""Keys that nothing reads in a run of `rl: aot...`: the tables, in plain data.

axolotl's schema knows some 400 keys. Many are read for supervised fine-tuning or for another `rl` only, and would
leave the run as it is without a word. `checks.py` refuses what stands here; every other key of the schema has an
effect, or none that anyone would miss (a table in `tests/test_keys.py` says which).
"""

# Keys that axolotl's causal builder hands to its trainer, or its supervised data loading reads; its RL builder
# and this package's data do neither.
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
    "eval_max_new_tokens",
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
# Keys that axolotl's RL builder does hand on, to a trainer that does not read them.
_NOT_OF_THE_TRAINER = ("include_tokens_per_second", "layer_offloading")
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
_LOSS_OF_LABELS = ("chunked_cross_entropy", "chunked_cross_entropy_num_chunks", "flash_attn_cross_entropy")
_LORA_KERNELS = ("lora_embedding_kernel", "lora_mlp_kernel", "lora_o_kernel", "lora_qkv_kernel")
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
    "pad_to_sequence_len": "AOT puts sequences together without padding; see aot_padding_free; remove it",
    "kto_desirable_weight": "both labels have the same mass in AOT, however many rows each has; remove it",
    "kto_undesirable_weight": "both labels have the same mass in AOT, however many rows each has; remove it",
    **dict.fromkeys(SUPERVISED_ONLY, "axolotl reads it for supervised fine-tuning only; remove it"),
    **dict.fromkeys(_NOT_OF_THE_TRAINER, "TRL's trainers do not read it; remove it"),
    **dict.fromkeys(_PACKING, "preference data are not packed; see aot_padding_free; remove it"),
    **dict.fromkeys(_PRETRAINING, "preference data are not streamed, and are no pre-training; remove it"),
    **dict.fromkeys(_POSE, "axolotl shifts the positions of supervised data only; remove it"),
    **dict.fromkeys(_LOSS_OF_LABELS, "log-probabilities are computed in chunks without it; remove it"),
    **dict.fromkeys(
        _LORA_KERNELS, "axolotl's LoRA kernels need the adapter before an RL trainer has made it; remove it"
    ),
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
    "rl_adapter_ref_model": "axolotl's validation drops it, and the reference of an adapter is the model "
    "without it; remove it",
    "float32": "set bf16 and fp16 to false instead",
    "fsdp_final_state_dict_type": "use final_state_dict_type in fsdp_config",
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
    "hub_revision": ("hub_model_id", ()),
    "hub_strategy": ("hub_model_id", ()),
    "scaling_softmax_bias": ("scaling_softmax", ()),
    "scaling_softmax_factor": ("scaling_softmax", ()),
    "tiled_mlp_num_shards": ("tiled_mlp", ()),
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
