"""Whether a YAML asks for anything that AOT would have to ignore, or that cannot run with it.

Each check takes the raw config and raises `AOTConfigError`; what it has made sure of, it writes back in
the form that axolotl needs.
"""

import math
from collections.abc import MutableMapping
from typing import Any

from axolotl.integrations.base import PluginManager

from axolotl_aot.errors import AOTConfigError

DEFAULT_BETA = 0.01  # the paper's choice

# Parallelism that cuts one sequence, one matrix or one layer over processes: never tried with AOT.
UNTRIED_PARALLELISM = (
    "context_parallel_size",
    "sequence_parallel_degree",
    "tensor_parallel_size",
    "expert_parallel_size",
)

# How samples are dealt out to the processes: the values that AOT counts on, which are the defaults.
DATA_LOADING = {"split_batches": False, "dispatch_batches": False, "even_batches": True}

# Metrics of which less is better; transformers takes that for granted of names that end in "loss" only.
LESS_IS_BETTER = ("dominance/violation", "dominance/violation_rate")


def check_beta(cfg: MutableMapping[str, Any]) -> None:
    """`rl_beta` is a number above 0; writes it as one, or the default."""
    trl_beta = (cfg.get("trl") or {}).get("beta")
    if trl_beta is not None:  # axolotl would prefer it to rl_beta
        raise AOTConfigError(f"`trl: beta: {trl_beta}`: set rl_beta instead")
    given = cfg.get("rl_beta")
    try:
        beta = DEFAULT_BETA if given is None else float(given)  # YAML reads 1e-2 as a string
    except ValueError:
        beta = math.nan
    if isinstance(given, bool) or not (math.isfinite(beta) and beta > 0):
        raise AOTConfigError(f"`rl_beta: {given}`: must be a number above 0, such as {DEFAULT_BETA}")
    cfg["rl_beta"] = beta


def check_parallelism(cfg: MutableMapping[str, Any], rl: str) -> None:
    """Engines and ways of dealing out the data that were not tried, or cannot work."""
    for key in UNTRIED_PARALLELISM:
        if str(cfg.get(key) or 1) != "1":
            raise AOTConfigError(
                f"`{key}: {cfg[key]}`: AOT does not run over it; use data parallelism (DDP, FSDP or "
                "DeepSpeed), and gradient checkpointing where memory is short"
            )
    accelerator = cfg.get("accelerator_config") or {}
    for key, value in DATA_LOADING.items():
        if accelerator.get(key, value) not in (None, value):
            raise AOTConfigError(
                f"`accelerator_config: {key}: {accelerator[key]}` with `rl: {rl}`: samples would not be "
                f"dealt out evenly; remove it (axolotl's default is {str(value).lower()})"
            )
    if not cfg.get("fsdp_config") and not cfg.get("fsdp"):
        return
    for key in ("load_in_4bit", "load_in_8bit"):
        if cfg.get(key):
            raise AOTConfigError(
                f"`{key}: true` with FSDP and `rl: {rl}`: axolotl cannot shard quantized weights under "
                "FSDP2, and FSDP1 was not tried; use DeepSpeed (ZeRO-2) or DDP"
            )


def check_trainer(cfg: MutableMapping[str, Any]) -> None:
    """No other plugin brings its own trainer, which axolotl would take in place of AOT's."""
    for name, plugin in PluginManager.get_instance().plugins.items():
        trainer = plugin.get_trainer_cls(cfg)
        if trainer is not None:
            raise AOTConfigError(
                f"`plugins: {name}` brings its own trainer, {trainer.__name__}, which would run in place of "
                "AOT's; remove it"
            )


def check_report_samples(cfg: MutableMapping[str, Any]) -> None:
    """The prompts that the report's answers are to are the evaluation set's."""
    if cfg.get("aot_report_samples") and not cfg.get("test_datasets") and not cfg.get("val_set_size"):
        raise AOTConfigError(
            f"`aot_report_samples: {cfg['aot_report_samples']}` needs an evaluation set, whose prompts are "
            "answered: set val_set_size or test_datasets, or remove it"
        )


def check_best_model(cfg: MutableMapping[str, Any]) -> None:
    """The best model is chosen on an evaluation set; writes `greater_is_better` for AOT's own metrics."""
    for key in ("metric_for_best_model", "early_stopping_patience", "load_best_model_at_end"):
        if cfg.get(key) and not cfg.get("test_datasets") and not cfg.get("val_set_size"):
            raise AOTConfigError(
                f"`{key}: {cfg[key]}` needs an evaluation set: set val_set_size or test_datasets, "
                "and eval_steps"
            )
    metric = str(cfg.get("metric_for_best_model") or "").removeprefix("eval_")
    if metric not in LESS_IS_BETTER:
        return
    if cfg.get("greater_is_better"):
        raise AOTConfigError(
            f"`greater_is_better: true` with `metric_for_best_model: {cfg['metric_for_best_model']}`: it is "
            "0 where the chosen answers dominate; remove greater_is_better, or set it to false"
        )
    cfg["greater_is_better"] = False
