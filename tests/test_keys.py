"""Every key of axolotl's schema: used, refused, or harmless; and keys that nobody knows.

The tables stand against the installed schema and axolotl's own sources: what is used is read on the way
that a run of `rl: aot...` takes through them, or by this package; what is refused is not, or to no effect.
"""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import axolotl
import pytest
import yaml
from axolotl.integrations.base import PluginManager
from axolotl.utils.schemas.config import AxolotlInputConfig
from pydantic import BaseModel

import axolotl_aot
from axolotl_aot.config import AOTInput, translate
from axolotl_aot.errors import AOTConfigError
from axolotl_aot.unread_keys import LISTS_OF_ENTRIES, check_keys


def words(text: str) -> list[str]:
    return text.split()


# --- The tables -----------------------------------------------------------------------------------

# Read in a run, or by a command.
USED = words("""
accelerator_config activation_offloading adam_beta1 adam_beta2 adam_beta3 adam_epsilon adam_epsilon2
adapter added_tokens_overrides attn_implementation auto_resume_from_checkpoints base_model
base_model_config batch_size bf16 bfloat16 bnb_config_kwargs chat_template chat_template_jinja
chat_template_kwargs cls_model_config comet_api_key comet_experiment_config comet_experiment_key
comet_mode comet_online comet_project_name comet_workspace cosine_constant_lr_ratio cosine_min_lr_ratio
dataloader_num_workers dataloader_pin_memory dataloader_prefetch_factor dataset_exact_deduplication
dataset_num_proc dataset_prepared_path dataset_processes datasets ddp ddp_broadcast_buffers
ddp_bucket_cap_mb ddp_find_unused_parameters ddp_timeout deepcompile deepspeed default_system_message
device_map dion_lr dion_momentum dion_rank_fraction dion_rank_multiple_of dp_replicate_size
dp_shard_size dynamic_checkpoint eager_attention early_stopping_patience embedding_lr embedding_lr_scale
embeddings_skip_upcast eval_batch_size eval_steps eval_strategy evals_per_epoch evaluation_strategy
excess_length_strategy experimental_skip_move_to_device experts_implementation flash_attention
flash_attn_d512 flash_attn_fuse_mlp flash_optimum flex_attention flex_attn_compile_kwargs float16 fp16
fp32_norm_classes fp32_norms fp8 fp8_config fp8_enable_fsdp_float8_all_gather freeze_mm_modules fsdp
fsdp_config fsdp_version fused_attn_kernel gc_collect_steps gc_steps gemma4_hybrid_attn_impl gptq
gpu_memory_limit gradient_accumulation_steps gradient_checkpointing gradient_checkpointing_kwargs
gradio_max_new_tokens gradio_server_name gradio_server_port gradio_share gradio_temperature gradio_title
greater_is_better hf_mlflow_log_artifacts hf_use_auth_token hub_model_id hub_revision hub_strategy
image_size include_tokens_per_second is_falcon_derived_model is_llama_derived_model
is_mistral_derived_model is_qwen_derived_model large_head_attention learning_rate
llama4_linearized_experts load_best_model_at_end load_in_4bit load_in_8bit logging_steps lora_alpha
lora_alpha_pattern lora_embedding_kernel lora_fan_in_fan_out lora_mlp_kernel lora_model_dir
lora_modules_to_save lora_o_kernel lora_on_cpu lora_qkv_kernel lora_r lora_rank_pattern
lora_target_linear lora_target_modules lora_target_parameters loraplus_lr_embedding loraplus_lr_ratio
low_cpu_mem_usage lr_groups lr_scheduler lr_scheduler_kwargs max_grad_norm max_memory max_steps
mean_resizing_embeddings merge_lora merge_method metric_for_best_model micro_batch_size
mlflow_experiment_name mlflow_run_name mlflow_tracking_uri model_quantization_config
model_quantization_config_kwargs num_dataset_shards_to_save num_epochs optim_args optim_target_modules
optimizer otel_metrics_host otel_metrics_port output_dir overrides_of_model_config
overrides_of_model_kwargs peft peft_ensure_weight_tying peft_init_lora_weights peft_layer_replication
peft_layers_pattern peft_layers_to_transform peft_trainable_token_indices peft_use_dora peft_use_rslora
ple_cpu_offload plugins precompute_ref_log_probs processor_kwargs processor_type profiler_steps
profiler_steps_start push_dataset_to_hub qat qgalore_cos_threshold qgalore_gamma_proj qgalore_proj_bits
qgalore_proj_group_size qgalore_proj_quant qgalore_proj_type qgalore_queue_size qgalore_rank
qgalore_scale qgalore_update_proj_gap qlora_sharded_model_loading quantization quantize_moe_experts
ray_num_workers ray_run_name reinit_weights remove_unused_columns resize_token_embeddings_to_32x
resources_per_worker resume_from_checkpoint revision_of_model rl rl_beta sage_attention save_first_step
save_only_model save_steps save_strategy save_total_limit saves_per_epoch scaling_softmax
scaling_softmax_bias scaling_softmax_factor sdp_attention sdpa_varlen seed selective_checkpointing
sequence_len shrink_embeddings shuffle_before_merging_datasets shuffle_merged_datasets
skip_prepare_dataset special_tokens strict test_datasets tf32 tiled_mlp tiled_mlp_num_shards
tiled_mlp_use_original_mlp tokenizer_config tokenizer_legacy tokenizer_save_jinja_files tokenizer_type
tokenizer_use_fast tokenizer_use_mistral_common tokens torch_empty_cache_steps torchdistx_path
trackio_project_name trackio_run_name trackio_space_id trust_remote_code type_of_model
unfrozen_parameters use_comet use_kernels use_mlflow use_onebitllms use_otel_metrics use_ray
use_tensorboard use_trackio use_wandb val_set_size vllm wandb_entity wandb_log_model wandb_mode
wandb_name wandb_project wandb_run_id wandb_watch warmup_ratio warmup_steps weight_decay
xformers_attention
""")

# Stops the run by name where it is set to anything but its default, or off.
REFUSED = words("""
auto_find_batch_size batch_flattening bench_dataset bench_split center_rewards_coefficient
chunked_cross_entropy chunked_cross_entropy_num_chunks context_parallel_size cpo_alpha
curriculum_sampling dataloader_drop_last dataset_keep_in_memory dataset_shard_idx dataset_shard_num
device do_bench_eval do_causal_lm_eval dpo_beta dpo_generate_during_eval dpo_label_smoothing
dpo_loss_type dpo_loss_weights dpo_norm_loss dpo_padding_free dpo_use_liger_kernel
dpo_use_logits_to_keep dpo_use_weighting eaft_alpha eaft_k ebft eot_tokens eval_causal_lm_metrics
eval_sample_packing eval_sequence_len eval_table_size fix_untrained_tokens flash_attn_cross_entropy
flash_attn_rms_norm float32 fsdp_final_state_dict_type generate_samples generation_max_new_tokens
generation_prompt_ratio generation_temperature generation_top_k generation_top_p group_by_length
heads_k_stride image_resize_algorithm jagged_restart_anneal_steps jagged_restart_steps
jagged_restart_warmup_steps kto_desirable_weight kto_undesirable_weight layer_offloading
lisa_layers_attribute lisa_n_layers lisa_step_interval local_rank loss_watchdog_patience
loss_watchdog_threshold lr_div_factor lr_quadratic_warmup max_packed_sequence_len max_prompt_len
min_sample_len multipack_real_batches neftune_noise_alpha noisy_embedding_alpha num_generation_samples
num_labels orpo_alpha pad_to_multiple_of peft_autocast_adapter_dtype pose_max_context_len
pose_num_chunks pose_split_on_token_ids preprocess_iterable pretrain_multipack_buffer_size
pretraining_dataset pretraining_sample_concatenation process_reward_model relora relora_cpu_offload
relora_prune_method relora_prune_ratio reward_model ring_attn_func role_boundaries rope_scaling
rpo_alpha s2_attention sample_packing sample_packing_bin_size sample_packing_eff_est
sample_packing_group_size sample_packing_mp_start_method sample_packing_sequentially
sequence_parallel_degree simpo_gamma streaming streaming_multipack_buffer_size tensor_parallel_size
torch_compile torch_compile_backend torch_compile_mode torch_compile_options total_num_tokens
total_supervised_tokens train_on_inputs trainer_cls trl use_eaft use_pose world_size
""")

# Nobody would miss what it asks for: a command or axolotl itself sets it, it can only be what it is, it is an
# option of a key that is refused, or it stands in axolotl's examples, and the log says that it is ignored.
HARMLESS = words("""
axolotl_config_path eval_max_new_tokens generation_do_sample include_tkps is_preprocess lora_dropout
pad_to_sequence_len pretrain_multipack_attn save_safetensors
""")

FIELDS = AxolotlInputConfig.model_fields


def test_the_tables_say_of_every_key_what_becomes_of_it():
    said = [*USED, *REFUSED, *HARMLESS]
    assert len(said) == len(set(said)), "a key stands in two tables"
    # keys of another supported version of axolotl may stand here, too
    unsaid = sorted(FIELDS.keys() - set(said))
    assert not unsaid, f"new keys of axolotl: {unsaid}; say of each: used, refused or harmless"


# --- What is refused ------------------------------------------------------------------------------

OTHER_VALUES = {"trainer_cls": "mine.Trainer", "trl": {"use_vllm": True}, "ebft": {"mode": "strided"}}


def something_else(key: str) -> Any:
    """A value of the key's type that asks for something: neither off, nor the default."""
    default = FIELDS[key].get_default(call_default_factory=True)
    return next(value for value in values_of(FIELDS[key].annotation) if value and value != default)


def values_of(annotation: Any) -> Iterator[Any]:
    yield from {bool: [True], int: [7], float: [0.37], str: ["x"], Any: ["x"], dict: [{"x": 1}]}.get(
        annotation, []
    )
    if get_origin(annotation) is Literal:
        yield from get_args(annotation)
    elif get_origin(annotation) is dict:
        yield {"x": 1}
    elif get_origin(annotation) in (list, tuple):
        yield [next(values_of(get_args(annotation)[0]))]
    elif get_args(annotation):
        for part in get_args(annotation):
            yield from values_of(part)
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield {name: next(values_of(f.annotation)) for name, f in annotation.model_fields.items()}
    elif isinstance(annotation, type) and hasattr(annotation, "__members__"):
        yield next(iter(annotation)).value


@pytest.mark.parametrize("key", [key for key in REFUSED if key in FIELDS])
def test_what_is_refused_stops_axolotls_own_loading(load, paired_config, unpaired_config, key):
    value = OTHER_VALUES.get(key) or something_else(key)
    for config in (paired_config, unpaired_config):
        with pytest.raises(AOTConfigError, match=f"`{key}: ") as error:
            load({**config, key: value})
        assert re.search("remove|use |set |put |without|support|is the limit|says what", str(error.value))


@pytest.mark.parametrize("key", [*REFUSED, *HARMLESS])
def test_what_is_off_empty_or_by_default_passes(key):
    if key == "peft_autocast_adapter_dtype":
        pytest.skip("off is not what it is by default")
    if key not in FIELDS:
        pytest.skip("not a key of the installed axolotl")
    for value in (None, False, FIELDS[key].get_default(call_default_factory=True)):
        check_keys({key: value}, "aot", AOTInput)


# --- What is used ---------------------------------------------------------------------------------

AXOLOTL = Path(axolotl.__file__).parent
ON_THE_WAY = (
    "cli/*.py",
    "common/datasets.py",
    "core/builders/base.py",
    "core/builders/rl.py",
    "core/trainers/dpo/*.py",
    "core/trainers/mixins/optimizer.py",
    "core/trainers/mixins/scheduler.py",
    "evaluate.py",
    "loaders/*.py",
    "monkeypatch/attention/*.py",
    "train.py",
    "utils/callbacks/dynamic_checkpoint.py",
    "utils/callbacks/opentelemetry.py",
    "utils/config/__init__.py",
    "utils/data/lock.py",
    "utils/distributed.py",
    "utils/fp32_norms.py",
    "utils/train.py",
)
TABLES = ("unread_keys.py", "checks.py")  # where keys are named that are not read
# Of these files, which are about supervised fine-tuning as well, the functions that a preference run calls.
FUNCTIONS = {
    "axolotl.utils.trainer": (
        "prepare_optim_env",
        "setup_fsdp_envs",
        "setup_parallelism_envs",
        "setup_trainer",
    ),
    "axolotl.utils.data.shared": ("merge_datasets", "create_train_validation_split"),
}
# What axolotl reads there of the keys that are refused: for another rl or for supervised data, to set it
# itself, for what is refused with it, or for a trainer that does nothing with it (see `FOREIGN_KEYS`).
READ_TO_NO_EFFECT = words("""
chunked_cross_entropy chunked_cross_entropy_num_chunks context_parallel_size cpo_alpha
curriculum_sampling device dpo_label_smoothing dpo_loss_type dpo_loss_weights dpo_padding_free
dpo_use_liger_kernel dpo_use_weighting eval_causal_lm_metrics eval_table_size fix_untrained_tokens
flash_attn_cross_entropy heads_k_stride kto_desirable_weight kto_undesirable_weight layer_offloading
local_rank num_labels orpo_alpha pad_to_multiple_of peft_autocast_adapter_dtype pretraining_dataset
process_reward_model relora reward_model ring_attn_func sample_packing simpo_gamma tensor_parallel_size
torch_compile torch_compile_backend torch_compile_mode torch_compile_options trainer_cls trl world_size
""")
# All keys that begin so become environment variables.
PREFIXES = {
    "wandb_": "wandb_",
    "hf_mlflow_": "mlflow_",
    "mlflow_": "mlflow_",
    "comet_": "comet_",
    "trackio_": "trackio_",
}
# Other keys that axolotl's validation makes of these, or of which it makes something else.
VALIDATED = words("""
dataset_processes deepcompile eager_attention evaluation_strategy flash_attention flex_attention
sage_attention sdp_attention xformers_attention
""")


def sources(ours: bool) -> str:
    """What reads the keys in a run: axolotl and, with `ours`, this package."""
    files = [path for pattern in ON_THE_WAY for path in sorted(AXOLOTL.glob(pattern))]
    files = [path for path in files if path.name != "config_options.py"]
    if ours:
        files += [path for path in Path(axolotl_aot.__file__).parent.rglob("*.py") if path.name not in TABLES]
    texts = [path.read_text() for path in files]
    for module, names in FUNCTIONS.items():
        functions = __import__(module, fromlist=names)
        texts += [inspect.getsource(getattr(functions, name)) for name in names]
    return "\n".join(texts)


def test_what_is_used_is_read_on_the_way():
    text = sources(ours=True)
    validation = "\n".join(p.read_text() for p in sorted((AXOLOTL / "utils/schemas").glob("*.py")))
    for prefix, module in PREFIXES.items():
        assert f'startswith("{prefix}")' in (AXOLOTL / f"utils/{module}.py").read_text()
    unread = []
    for key in USED:
        found = re.search(rf"cfg\.{key}\b|[\"']{key}[\"']", text) or key.startswith(tuple(PREFIXES))
        if key in VALIDATED:
            found = re.search(rf"data(\.get\(|\[)[\"']{key}[\"']|\"{key}\":|\"{key}\",", validation)
        if key in FIELDS and not found:
            unread.append(key)
    assert not unread


def test_what_is_refused_is_not_read_on_the_way_or_to_no_effect():
    text = sources(ours=False)
    read = {key for key in REFUSED if re.search(rf"cfg\.{key}\b|[\"']{key}[\"']", text)}
    assert not read - set(READ_TO_NO_EFFECT), "axolotl reads them now: has their value an effect?"


NEEDED = {
    "adam_beta3": {"optimizer": "came_pytorch"},
    "adam_epsilon2": {"optimizer": "came_pytorch"},
    "torchdistx_path": {"optimizer": "adamw_anyprecision"},
    "cosine_constant_lr_ratio": {"cosine_min_lr_ratio": 0.1},
    "default_system_message": {"chat_template": "chatml"},
    "fp32_norm_classes": {"fp32_norms": True},
    "fp8_config": {"fp8": True},
    "fp8_enable_fsdp_float8_all_gather": {"fp8": True},
    "model_quantization_config_kwargs": {"model_quantization_config": "Mxfp4Config"},
    "profiler_steps_start": {"profiler_steps": 2},
    "hub_revision": {"hub_model_id": "me/model"},
    "hub_strategy": {"hub_model_id": "me/model"},
    "scaling_softmax_bias": {"scaling_softmax": True},
    "scaling_softmax_factor": {"scaling_softmax": True},
    "tiled_mlp_num_shards": {"tiled_mlp": True},
    **{key: {"adapter": "lora"} for key in USED if re.match("(lora_|peft|loraplus_lr_ratio)", key)},
    "loraplus_lr_embedding": {"adapter": "lora", "loraplus_lr_ratio": 16},
    **{key: {"optimizer": "dion"} for key in USED if key.startswith("dion_")},
    **{key: {"optimizer": "q_galore_adamw8bit"} for key in USED if key.startswith("qgalore_")},
}


@pytest.mark.parametrize("key", [key for key in (*USED, *HARMLESS) if key not in LISTS_OF_ENTRIES])
def test_what_is_used_or_harmless_passes(key):
    if key not in FIELDS:
        pytest.skip("not a key of the installed axolotl")
    value = {"even_batches": True} if key == "accelerator_config" else next(values_of(FIELDS[key].annotation))
    for name in (key, FIELDS[key].alias or key):
        for rl in ("aot", "aot_unpaired"):
            check_keys({**NEEDED.get(key, {}), name: value}, rl, AOTInput)


@pytest.mark.parametrize("key", NEEDED)
def test_what_another_key_must_switch_on(load, paired_config, key):
    if key not in FIELDS:
        pytest.skip("not a key of the installed axolotl")
    *_, other = NEEDED[key]
    off = {"optimizer": "sgd"} if other == "optimizer" else {}
    off |= {"lr_scheduler": "cosine"} if key.startswith("cosine") else {}
    values = [value for value in values_of(FIELDS[key].annotation) if value != FIELDS[key].default]
    if not values:
        pytest.skip("can only be switched off")
    with pytest.raises(AOTConfigError, match=f"`{key}: .* has no effect without .*{other}"):
        load({**paired_config, **off, key: values[0]})


# --- What nobody knows ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"rl_bta": 0.5}, "`rl_bta` is not a key .*'rl_beta'"),
        ({"num_epoch": 3}, "`num_epoch` .*'num_epochs'"),
        ({"learning-rate": 1e-4}, "`learning-rate` .*'learning_rate'"),
        ({"micro_batchsize": 4}, "`micro_batchsize` .*'micro_batch_size'"),
        ({"Seed": 1}, "`Seed` .*'seed'"),
        ({"precompute_ref_logprobs": True}, "`precompute_ref_logprobs` .*'precompute_ref_log_probs'"),
        ({"lora_target_module": ["q_proj"]}, "`lora_target_module` .*'lora_target_modules'"),
        ({"per_device_train_batch_size": 4}, "`per_device_train_batch_size` .*'micro_batch_size'"),
        ({"lora_rank": 8}, "`lora_rank` .*'lora_r'"),
        ({"x-shared": {"path": "data.jsonl"}}, "`x-shared` is not a key .*no effect. Remove it."),
        ({"my_notes": "of last week"}, "`my_notes` .*Remove it."),
        ({7: "seven"}, "`7` .*Remove it."),
        ({"rl_adapter_ref_model": True}, "`rl_adapter_ref_model: True` has no effect.*validation drops it"),
        ({"max_prompt_len": 3}, "`max_prompt_len: 3` has no effect.*sequence_len"),
        (
            {"special_tokens": {"pad_token": "<pad>", "eot_token": "</s>"}},
            "`special_tokens: eot_token` .*'eos_token'",
        ),
        ({"fsdp_config": {"ofload_params": True}}, "`fsdp_config: ofload_params` .*'offload_params'"),
        ({"accelerator_config": {"even_batch": True}}, "`accelerator_config: even_batch` .*'even_batches'"),
        ({"peft": {"loftq_config": {"bits": 4}}}, "`peft: loftq_config: bits` .*Known: loftq_bits."),
        ({"lr_groups": [{"name": "a", "module": ["q"], "lr": 1}]}, "`lr_groups: module` .*'modules'"),
        ({"dynamic_checkpoint": {"enable": True}}, "`dynamic_checkpoint: enable` .*'enabled'"),
    ],
)
def test_what_nobody_knows_stops_axolotls_own_loading(load, paired_config, more, message):
    with pytest.raises(AOTConfigError, match=message):
        load({**paired_config, "base_model": "/nowhere", **more})


@pytest.mark.parametrize(
    "more",
    [
        {"rl_bta": None},
        {
            "model_config": {"anything": 1},
            "model_kwargs": {"use_cache": False},
            "model_type": "LlamaForCausalLM",
        },
        {"fsdp_config": {"fsdp_offload_params": True, "version": 2}, "fsdp_version": 2},
        {"optim_args": {"anything": 1}, "lr_scheduler_kwargs": {"anything": 1}},
        {"trl": None, "vllm": {"port": 8000}},
        {"trl": {"beta": None, "use_vllm": False}},
    ],
)
def test_what_is_known_or_empty_passes(more):
    assert translate({"rl": "aot", **more}) == "aot"


USUAL = """
adapter: lora
chat_template: llama3
load_in_8bit: true
load_in_4bit: false
strict: false
train_on_inputs: false
group_by_length: false
sequence_len: 4096
sample_packing: false
eval_sample_packing: false
pad_to_sequence_len: true
lora_model_dir:
lora_r: 32
lora_alpha: 16
lora_dropout: 0.05
lora_target_linear: true
lora_fan_in_fan_out:
local_rank:
xformers_attention:
flash_attention: true
s2_attention:
weight_decay: 0.0
warmup_steps: 10
evals_per_epoch: 4
eval_table_size:
eval_max_new_tokens: 128
saves_per_epoch: 1
debug:
deepspeed:
fsdp:
fsdp_config:
gradient_checkpointing: true
gradient_checkpointing_kwargs:
  use_reentrant: false
resume_from_checkpoint:
wandb_project:
logging_steps: 1
special_tokens:
  pad_token: <|end_of_text|>
tf32: false
bf16: auto
"""


@pytest.mark.parametrize("rl", ["aot", "aot_unpaired"])
def test_the_keys_of_axolotls_examples_of_dpo_and_kto_pass(rl):
    assert translate({**yaml.safe_load(USUAL), "rl": rl}) == rl


def test_what_axolotls_commands_put_into_the_config_passes(load, paired_config, lora):
    options = {
        "debug": True,
        "debug_text_only": True,
        "debug_num_examples": 2,
        "prompter": None,
        "shard": False,
    }
    of_commands = [
        options,
        {**options, "is_preprocess": True, "download": True, "iterable": None},
        {"merge_lora": True, "load_in_8bit": False, "attn_implementation": None, "fsdp_config": None},
    ]
    for more in of_commands:
        assert load({**paired_config, **lora}, **more).rl.value == "dpo"


def test_the_keys_of_other_plugins_are_known_where_they_are_listed(paired_config, monkeypatch):
    from axolotl.cli.config import prepare_plugins
    from axolotl.utils.dict import DictDefault

    monkeypatch.setattr(PluginManager.get_instance(), "plugins", {})  # those of other tests stay registered
    config = {**paired_config, "cut_cross_entropy": False}
    with pytest.raises(AOTConfigError, match="`cut_cross_entropy` is not a key"):
        prepare_plugins(DictDefault(config))
    other = "axolotl.integrations.cut_cross_entropy.CutCrossEntropyPlugin"
    prepare_plugins(DictDefault({**config, "plugins": [*config["plugins"], other]}))


def test_a_config_that_axolotl_has_completed_is_not_checked_again(load, paired_config):
    cfg = load(paired_config)
    assert cfg.model_config_type == "llama"  # no key of the schema
    assert translate(cfg) == "aot"  # as on a Ray worker


def test_a_report_of_another_rl_leaves_out_what_it_does_not_need():
    from axolotl_aot.report.comparison import scoring_config

    raw = {"rl": "dpo", "base_model": "x", "dpo_use_weighting": True, "rl_bta": 1, "adam_beta3": 0.9}
    assert translate(scoring_config({**raw, "datasets": [{"path": "x", "type": "pairs"}]})) == "aot"
