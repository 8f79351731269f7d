"""Training arguments and callbacks from keys of the YAML that axolotl's RL builder does not pass on.

axolotl reads these keys for supervised fine-tuning only; in an RL run they would vanish without a word.
"""

from collections.abc import Mapping
from typing import Any

from transformers import EarlyStoppingCallback, TrainerCallback

from axolotl_aot.config import active_rl

# KTO's loss type without a KL term: TRL then prepares no KL data, and allows any order and batch.
UNPAIRED = {"loss_type": "apo_zero_unpaired", "train_sampling_strategy": "random"}

# Keys that are fields of transformers' TrainingArguments, under the same name.
SAME_NAME = (
    "ddp_broadcast_buffers",
    "ddp_bucket_cap_mb",
    "ddp_find_unused_parameters",
    "ddp_timeout",
    "greater_is_better",
    "metric_for_best_model",
)


def training_args(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """What is to be added to the training arguments that axolotl makes of a validated config."""
    args = {key: cfg[key] for key in SAME_NAME if cfg.get(key) is not None}
    args["precompute_ref_log_probs"] = False  # TRL's own, before the model is wrapped; see `precompute`
    if not cfg.get("max_steps"):
        # axolotl's number of steps leaves the end of the last epoch out where epochs end with a small step
        args["max_steps"] = -1
    if active_rl(cfg) == "aot_unpaired":
        args.update(UNPAIRED)
    if cfg.get("early_stopping_patience"):
        args.setdefault("metric_for_best_model", "eval_loss")
    # as for supervised fine-tuning: on demand, and with early stopping where checkpoints are of evaluated
    # steps, which axolotl's validation sees to where both keys are set (its default, false, cannot be told
    # from false in the YAML)
    stops_early = cfg.get("early_stopping_patience") and cfg.get("save_steps") and cfg.get("eval_steps")
    args["load_best_model_at_end"] = bool(cfg.get("load_best_model_at_end") or stops_early)
    return args


def callbacks(cfg: Mapping[str, Any]) -> list[TrainerCallback]:
    """The callbacks that go with `training_args`."""
    patience = cfg.get("early_stopping_patience")
    return [EarlyStoppingCallback(patience)] if patience else []
