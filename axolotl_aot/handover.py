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
from transformers.trainer_callback import ExportableState

from axolotl_aot.config import AOTArgs, AOTConfigError


class AOTSetup(TrainerCallback, ExportableState):
    """What the plugin hands to the trainer, as a callback: the one thing axolotl lets it pass in.

    args: the YAML's `aot_` keys. reference: the reference model that axolotl loaded for full
    fine-tuning, or None. adapter_dir: where a trained adapter lies, or None without an adapter.
    lora_model_dir: the YAML's key of that name. auto_resume: whether axolotl chooses the checkpoint.

    As an `ExportableState` it is written into every checkpoint: run_settings, what must not change when
    a run is resumed, by YAML key; one_label_steps, how many sorts so far had one label only.
    """

    def __init__(
        self,
        args: AOTArgs | None = None,
        reference: PreTrainedModel | None = None,
        adapter_dir: str | None = None,
        lora_model_dir: str | None = None,
        auto_resume: bool = False,
    ):
        self.args = args or AOTArgs()
        self.reference = reference
        self.adapter_dir = adapter_dir
        self.lora_model_dir = lora_model_dir
        self.auto_resume = auto_resume
        self.run_settings: dict[str, Any] = {}
        self.one_label_steps = 0
        self._previous_handler: Any = None

    @classmethod
    def among(cls, callbacks: list[TrainerCallback] | None) -> "AOTSetup":
        """The setup among a trainer's callbacks; one of defaults where there is none."""
        return next((c for c in callbacks or [] if isinstance(c, cls)), None) or cls()

    def state(self) -> dict[str, Any]:
        """What transformers writes into a checkpoint's trainer state."""
        saved = {"run_settings": self.run_settings, "one_label_steps": self.one_label_steps}
        return {"args": {}, "attributes": saved}

    def restore(self, saved: dict[str, Any], checkpoint: str) -> None:
        """Go on from the `attributes` of a `state`.

        Raises:
            AOTConfigError: it was trained with other settings; the message names each difference.
        """
        before = saved["run_settings"]
        changed = [
            f"`{key}: {self.run_settings.get(key)}` (the checkpoint: {before.get(key)})"
            for key in {**before, **self.run_settings}
            if before.get(key) != self.run_settings.get(key)
        ]
        if changed:
            raise AOTConfigError(
                f"cannot resume from {checkpoint} with other settings: {', '.join(changed)}. Set them back, "
                "or start a new run, with another output_dir and without resuming"
            )
        self.one_label_steps = saved["one_label_steps"]

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
