"""The plugin: the hooks that axolotl calls, each a few lines.

axolotl keeps plugins registered for the life of a process and calls every hook of every one, also for
a config that does not use it; so each hook asks first whether the config at hand runs AOT.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from axolotl.common.const import DEFAULT_DATASET_PREPARED_PATH
from axolotl.integrations.base import BasePlugin
from axolotl.utils.dict import DictDefault
from transformers import PreTrainedModel, Trainer, TrainerCallback

from axolotl_aot import checks, config, dataset_hook

if TYPE_CHECKING:
    from axolotl_aot.training.report_callback import ReportCallback


class AOTPlugin(BasePlugin):
    """`rl: aot` and `rl: aot_unpaired` for axolotl."""

    def __init__(self) -> None:
        super().__init__()
        self._active = False
        self._last_loaded: PreTrainedModel | None = None
        self._report: ReportCallback | None = None
        self._trained = False

    def register(self, cfg: dict[str, Any]) -> None:
        """Check the raw YAML and translate `rl: aot...` (see `axolotl_aot.config`)."""
        self._active = config.translate(cfg) is not None
        if self._active:
            from axolotl_aot.training.lora_kernels import carry_keys

            carry_keys(cfg)
            dataset_hook.install()

    def get_input_args(self) -> str | None:
        """Add the `aot_` keys to axolotl's schema, so that they survive its validation."""
        return "axolotl_aot.config.AOTInput" if self._active else None

    def get_training_args(self, cfg: DictDefault) -> dict[str, Any] | None:
        """What axolotl's RL builder does not set from the YAML."""
        if not config.active_rl(cfg):
            return None
        from axolotl_aot.training.run_setup import training_args

        return training_args(cfg)

    def pre_model_load(self, cfg: DictDefault) -> None:
        """Before a model is read, policy or reference: what its files lack is drawn alike each time.

        An adapter that is not there is told now, and not when a large model has been read; so is a plugin
        that would train in AOT's place.
        """
        if config.active_rl(cfg):
            from axolotl_aot.training.new_tokens import draw_weights_alike
            from axolotl_aot.training.start_checks import require_adapter

            checks.check_trainer(cfg)
            draw_weights_alike()
            if cfg.adapter and cfg.lora_model_dir:
                require_adapter(cfg.lora_model_dir)

    def post_model_build(self, cfg: DictDefault, model: PreTrainedModel) -> None:
        """The same when it has been read, before axolotl makes its embeddings longer for new tokens."""
        self.pre_model_load(cfg)

    def post_model_load(self, cfg: DictDefault, model: PreTrainedModel) -> None:
        """Remember the model: axolotl loads the policy first and a reference, if any, after it."""
        if config.active_rl(cfg):
            self._last_loaded = model

    def add_callbacks_pre_trainer(self, cfg: DictDefault, model: PreTrainedModel) -> list[TrainerCallback]:
        """Hand the settings, and the reference model, to the trainer about to be built."""
        if not config.active_rl(cfg):
            return []
        from axolotl_aot.training.interrupt import SaveAdapterOnInterrupt
        from axolotl_aot.training.run_setup import AOTSetup

        last_loaded, self._last_loaded = self._last_loaded, None
        setup = AOTSetup(
            config.settings(cfg),
            reference=last_loaded if last_loaded is not model else None,
            output_dir=cfg.output_dir,
            adapter=bool(cfg.adapter),
            lora_model_dir=cfg.lora_model_dir,
            merge_method=cfg.merge_method,
            auto_resume=bool(cfg.auto_resume_from_checkpoints and not cfg.resume_from_checkpoint),
            reference_folder=self._reference_folder(cfg),
        )
        return [setup, SaveAdapterOnInterrupt()] if cfg.adapter else [setup]

    def _reference_folder(self, cfg: DictDefault) -> Path | None:
        if not cfg.precompute_ref_log_probs:
            return None
        return Path(cfg.dataset_prepared_path or DEFAULT_DATASET_PREPARED_PATH) / "aot_references"

    def add_callbacks_post_trainer(self, cfg: DictDefault, trainer: Trainer) -> list[TrainerCallback]:
        """Callbacks that axolotl's RL builder does not make from the YAML, and the report's.

        The trainer has made the adapter by now, which LoRA kernels need.
        """
        self._trained, self._report = False, None
        if not config.active_rl(cfg):
            return []
        from axolotl_aot.training.lora_kernels import apply_lora_kernels
        from axolotl_aot.training.report_callback import ReportCallback
        from axolotl_aot.training.run_setup import callbacks

        if cfg.adapter:
            apply_lora_kernels(cfg, trainer)
        settings = config.settings(cfg)
        if not settings.aot_report:
            return callbacks(cfg)
        self._report = ReportCallback(trainer, settings.samples_in_report(trainer.eval_dataset is not None))
        return [self._report, *callbacks(cfg)]

    def post_train(self, cfg: DictDefault, model: PreTrainedModel) -> None:
        """When axolotl has saved what was trained: mend it where FSDP2 was at work, and write the report.

        axolotl calls this twice, when training has ended and when all is saved.
        """
        if not config.active_rl(cfg):
            return
        if cfg.adapter and cfg.fsdp_config and os.environ.get("RANK", "0") == "0":
            from axolotl_aot.training.fsdp2_fixes import mend_saved

            mend_saved(Path(cfg.output_dir))
        if not self._trained:
            self._trained = True
            if cfg.adapter:
                from axolotl_aot.training.tied_embeddings import save_shared_weights_once

                save_shared_weights_once(model)
            return
        report, self._report = self._report, None
        if report is not None and report.scored_run is not None:
            from axolotl_aot.report.run_report import write_run_report
            from axolotl_aot.training.interrupt import interruptible

            with interruptible():
                write_run_report(cfg, report.scored_run)
