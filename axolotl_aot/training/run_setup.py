"""What the plugin hands to the trainer that axolotl builds, and to its training arguments.

axolotl reads some keys of the YAML for supervised fine-tuning only; in an RL run they would vanish without
a word. `training_args` and `callbacks` pass them on.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import EarlyStoppingCallback, PreTrainedModel, TrainerCallback

from axolotl_aot.config import AOTArgs, active_rl

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


@dataclass(eq=False)
class AOTSetup(TrainerCallback):
    """The settings of a run, as a callback: the one thing that axolotl lets a plugin pass to a trainer.

    args: the YAML's `aot_` keys. reference: the reference model that axolotl loaded for full fine-tuning, or
    None. output_dir, lora_model_dir, merge_method: the YAML's keys. adapter: whether it names an adapter;
    None where there is no YAML, and models are to be taken as they come. auto_resume: whether axolotl
    chooses the checkpoint to resume from. reference_folder: where the reference's log-probabilities are kept
    that are computed before training; None where they are not.
    """

    args: AOTArgs = field(default_factory=AOTArgs)
    reference: PreTrainedModel | None = None
    output_dir: str | None = None
    adapter: bool | None = None
    lora_model_dir: str | None = None
    merge_method: str | None = None
    auto_resume: bool = False
    reference_folder: Path | None = None

    @classmethod
    def from_callbacks(cls, callbacks: list[TrainerCallback] | None) -> "AOTSetup":
        """The setup among a trainer's callbacks; one of defaults where there is none."""
        return next((c for c in callbacks or [] if isinstance(c, cls)), None) or cls()


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
