"""What the plugin hands to the trainer that axolotl builds, and what a checkpoint keeps of it."""

from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel
from transformers import PreTrainedModel, TrainerCallback
from transformers.trainer_callback import ExportableState

from axolotl_aot.config import AOTArgs
from axolotl_aot.errors import AOTConfigError
from axolotl_aot.report.runs import ScoredRun
from axolotl_aot.scoring.models import CONFIG as ADAPTER_CONFIG
from axolotl_aot.scoring.models import load_adapter


class AOTSetup(TrainerCallback, ExportableState):
    """What the plugin hands to the trainer, as a callback: the one thing axolotl lets it pass in.

    args: the YAML's `aot_` keys. reference: the reference model that axolotl loaded for full
    fine-tuning, or None. output_dir, lora_model_dir: the YAML's keys. adapter: whether it names an
    adapter; None where there is no YAML, and models are to be taken as they come. auto_resume: whether
    axolotl chooses the checkpoint to resume from. reference_folder: where the reference's
    log-probabilities are kept that are computed before training; None where they are not.

    record: what the trainer hands back when it has trained, for the report; on the main process only.

    As an `ExportableState` it is written into every checkpoint: run_settings, what must not change when
    a run is resumed, by YAML key; one_label_steps, how many sorts so far had one label only.
    """

    def __init__(
        self,
        args: AOTArgs | None = None,
        reference: PreTrainedModel | None = None,
        output_dir: str | None = None,
        adapter: bool | None = None,
        lora_model_dir: str | None = None,
        auto_resume: bool = False,
        reference_folder: Path | None = None,
    ):
        self.args = args or AOTArgs()
        self.reference = reference
        self.output_dir = output_dir
        self.adapter = adapter
        self.lora_model_dir = lora_model_dir
        self.auto_resume = auto_resume
        self.reference_folder = reference_folder
        self.run_settings: dict[str, Any] = {}
        self.one_label_steps = 0
        self.record: ScoredRun | None = None

    @classmethod
    def among(cls, callbacks: list[TrainerCallback] | None) -> "AOTSetup":
        """The setup among a trainer's callbacks; one of defaults where there is none."""
        return next((c for c in callbacks or [] if isinstance(c, cls)), None) or cls()

    def state(self) -> dict[str, Any]:
        """What transformers writes into a checkpoint's trainer state."""
        saved = {"run_settings": self.run_settings, "one_label_steps": self.one_label_steps}
        return {"args": {}, "attributes": saved}

    def models(
        self,
        model: PreTrainedModel,
        reference: PreTrainedModel | None,
        peft_config: PeftConfig | None,
    ) -> tuple[PreTrainedModel | PeftModel, PreTrainedModel | None]:
        """Policy and reference: as axolotl loaded them to train; trained, for evaluation.

        `axolotl evaluate` loads `base_model`, and neither the adapter nor a reference: the base model
        would be compared with itself. To train, axolotl hands over a `peft_config` or a reference.

        Raises:
            AOTConfigError: `lora_model_dir` in training, or nothing trained where it is to be evaluated.
        """
        if self.adapter is None:
            return model, reference
        if self.adapter:
            if peft_config is None:
                return load_adapter(model, self._trained(ADAPTER_CONFIG)), reference
            if self.lora_model_dir:
                raise AOTConfigError(
                    f"`lora_model_dir: {self.lora_model_dir}`: axolotl starts every RL run with a new "
                    "adapter and would ignore it; merge it into base_model first (axolotl merge-lora), "
                    "or use resume_from_checkpoint"
                )
            return model, reference
        reference = reference or self.reference
        if reference is not None:
            return model, reference
        attention = model.config._attn_implementation  # where transformers keeps what it was told
        policy = type(model).from_pretrained(
            self._trained("config.json"), dtype=model.dtype, attn_implementation=attention
        )
        return policy, model

    def _trained(self, file: str) -> str:
        folder = self.lora_model_dir or self.output_dir
        if not (Path(folder) / file).is_file():
            raise AOTConfigError(
                f"nothing trained in {folder} (no {file}): train first, or set "
                f"{'lora_model_dir' if self.adapter else 'output_dir'}"
            )
        return folder
