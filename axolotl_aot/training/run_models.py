"""Policy and reference of a run: as axolotl loaded them to train; trained, for evaluation."""

from pathlib import Path

from peft import PeftConfig, PeftModel
from transformers import PreTrainedModel

from axolotl_aot.errors import AOTConfigError
from axolotl_aot.scoring.models import ADAPTER_CONFIG, load_adapter, load_whole_model, trained_folder
from axolotl_aot.training.run_setup import AOTSetup


def policy_and_reference(
    setup: AOTSetup,
    model: PreTrainedModel,
    reference: PreTrainedModel | None,
    peft_config: PeftConfig | None,
) -> tuple[PreTrainedModel | PeftModel, PreTrainedModel | None]:
    """The models of a run, from those that axolotl hands to the trainer.

    `axolotl evaluate` loads `base_model`, and neither the adapter nor a reference: the base model would be
    compared with itself. To train, axolotl hands over a `peft_config` or a reference. `lora_model_dir` names
    what was trained in an evaluation, and where training starts otherwise (`start_adapter`).

    Raises:
        AOTConfigError: nothing trained where it is to be evaluated.
    """
    if setup.adapter is None:
        return model, reference
    if setup.adapter:
        if peft_config is None:
            return load_adapter(model, _trained(setup, ADAPTER_CONFIG)), reference
        return model, reference
    reference = reference or setup.reference
    if reference is not None:
        return model, reference
    return load_whole_model(model, _trained(setup, "config.json")), model


def _trained(setup: AOTSetup, file: str) -> str:
    folder = trained_folder(setup.lora_model_dir, setup.output_dir) if setup.adapter else setup.output_dir
    if not (Path(folder) / file).is_file():
        raise AOTConfigError(
            f"nothing trained in {folder} (no {file}): train first, or set "
            f"{'lora_model_dir' if setup.adapter else 'output_dir'}"
        )
    return folder
