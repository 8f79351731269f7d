"""What the plugin hands to the trainer that axolotl builds, and the rescue of an interrupted adapter.

May import `axolotl_aot.config`; axolotl, transformers and peft.
"""

import signal
import sys
from pathlib import Path
from threading import current_thread, main_thread
from typing import Any

from axolotl.utils.distributed import cleanup_distributed
from peft import PeftConfig, PeftModel
from transformers import PreTrainedModel, TrainerCallback, TrainerState, TrainingArguments

from axolotl_aot.config import AOTArgs, AOTConfigError


class AOTSetup(TrainerCallback):
    """What the plugin hands to the trainer, as a callback: the one thing axolotl lets it pass in.

    args: the YAML's `aot_` keys. reference: the reference model that axolotl loaded for full
    fine-tuning, or None. adapter_dir: where a trained adapter lies, or None without an adapter.
    lora_model_dir: the YAML's key of that name.
    """

    def __init__(
        self,
        args: AOTArgs | None = None,
        reference: PreTrainedModel | None = None,
        adapter_dir: str | None = None,
        lora_model_dir: str | None = None,
    ):
        self.args = args or AOTArgs()
        self.reference = reference
        self.adapter_dir = adapter_dir
        self.lora_model_dir = lora_model_dir
        self._previous_handler: Any = None

    @classmethod
    def among(cls, callbacks: list[TrainerCallback] | None) -> "AOTSetup":
        """The setup among a trainer's callbacks; one of defaults where there is none."""
        return next((c for c in callbacks or [] if isinstance(c, cls)), None) or cls()

    def with_trained_adapter(
        self, model: PreTrainedModel, peft_config: PeftConfig | None
    ) -> PreTrainedModel | PeftModel:
        """The model as it is for training; for evaluation, with its trained adapter.

        axolotl loads no adapter for its RL types: to train, it hands the trainer a `peft_config`; in
        `axolotl evaluate` it hands it none, and the bare base model would be evaluated.

        Raises:
            AOTConfigError: `lora_model_dir` in training, or no adapter where one is to be evaluated.
        """
        if not self.adapter_dir:
            return model
        if peft_config is not None:
            if self.lora_model_dir:
                raise AOTConfigError(
                    f"`lora_model_dir: {self.lora_model_dir}`: axolotl starts every RL run with a new "
                    "adapter and would ignore it; merge it into base_model first (axolotl merge-lora), "
                    "or use resume_from_checkpoint"
                )
            return model
        if not (Path(self.adapter_dir) / "adapter_config.json").is_file():
            raise AOTConfigError(
                f"no trained adapter in {self.adapter_dir}: train first, or set lora_model_dir"
            )
        return PeftModel.from_pretrained(model, self.adapter_dir)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        """On Ctrl-C, save the adapter: axolotl's own handler saves the base model that it loaded.

        Sharded engines are left to axolotl, since one process alone cannot save there; so is a worker
        that trains in a thread, where Python takes no signals.
        """
        if not self.adapter_dir or args.fsdp or args.deepspeed:
            return
        if not state.is_local_process_zero or current_thread() is not main_thread():
            return

        def save_and_exit(signum: int, frame: Any) -> None:
            model.save_pretrained(args.output_dir)
            cleanup_distributed()
            sys.exit(0)

        self._previous_handler = signal.signal(signal.SIGINT, save_and_exit)

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        """Give Ctrl-C back to axolotl."""
        if self._previous_handler is not None:
            signal.signal(signal.SIGINT, self._previous_handler)
            self._previous_handler = None
