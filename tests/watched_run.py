"""A run of axolotl's own DPO, without this package, and a plugin that writes down when axolotl calls what."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import axolotl.train
import pytest
from axolotl.cli.config import load_cfg
from axolotl.common.datasets import TrainDatasetMeta, load_preference_datasets
from axolotl.core.trainers import AxolotlKTOTrainer
from axolotl.core.trainers.dpo.args import AxolotlDPOConfig
from axolotl.core.trainers.dpo.trainer import AxolotlDPOTrainer
from axolotl.core.training_args import AxolotlKTOConfig
from axolotl.integrations.base import BasePlugin, PluginManager
from axolotl.utils.dict import DictDefault
from datasets import Dataset
from pydantic import BaseModel
from transformers import PreTrainedModel, Trainer, TrainerCallback
from transformers.trainer_callback import ExportableState

EVENTS: list[tuple[str, Any]] = []  # what axolotl has called so far, in order, and with what


def last(name: str) -> Any:
    """With what axolotl has called it last."""
    return next(value for event, value in reversed(EVENTS) if event == name)


class Stop(Exception):
    """Raised where a check has seen enough."""


class Keys(BaseModel):
    """A plugin's keys of the YAML."""

    upstream_key: int | None = None


class Watcher(TrainerCallback, ExportableState):
    """Is asked for its state when a checkpoint is all but written, and once before training."""

    folder: Path | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        self.folder = Path(args.output_dir)

    def state(self):
        if self.folder is not None:
            EVENTS.append(("state", {path.name for path in (self.folder / "checkpoint-1").glob("*")}))
        return {"args": {}, "attributes": {"trains": self.folder is not None}}


class Late(TrainerCallback):
    pass


class Recorder(BasePlugin):
    def register(self, cfg):
        EVENTS.append(("register", dict(cfg)))
        cfg["upstream_key"] = 7

    def get_input_args(self):
        return f"{__name__}.Keys"

    def get_training_args(self, cfg):
        return {"adam_beta1": 0.5}

    def post_model_load(self, cfg, model):
        EVENTS.append(("post_model_load", model))

    def add_callbacks_pre_trainer(self, cfg, model):
        EVENTS.append(("add_callbacks_pre_trainer", model))
        return [Watcher()]

    def add_callbacks_post_trainer(self, cfg, trainer):
        EVENTS.append(("add_callbacks_post_trainer", trainer))
        return [Late()]

    def post_train(self, cfg, model):
        saved = (Path(cfg.output_dir) / "model.safetensors").exists()
        EVENTS.append(("post_train", (saved, signal.getsignal(signal.SIGINT))))


class NotesColumns:
    """Writes down the columns of a data set before and after TRL has prepared it."""

    def _prepare_dataset(self, dataset, *args, **kwargs):
        prepared = super()._prepare_dataset(dataset, *args, **kwargs)
        EVENTS.append(("_prepare_dataset", (set(dataset.column_names), set(prepared.column_names))))
        return prepared


class DPO(NotesColumns, AxolotlDPOTrainer):
    def __init__(self, *args, **kwargs):
        EVENTS.append(("trainer", (args, kwargs)))
        super().__init__(*args, **kwargs)


class KTO(NotesColumns, AxolotlKTOTrainer):
    pass


class Unbuilt(AxolotlDPOTrainer):
    def __init__(self, *args, **kwargs):
        EVENTS.append(("trainer", (args, kwargs)))
        raise Stop


class Run(NamedTuple):
    """What a run leaves behind; events: of this run only."""

    cfg: DictDefault
    data: TrainDatasetMeta
    trainer: Trainer
    events: list[tuple[str, Any]]

    def happened(self, name: str) -> list[Any]:
        return [value for event, value in self.events if event == name]

    def order(self, *names: str) -> list[str]:
        """Which of these events came when."""
        return [event for event, _ in self.events if event in names]


@contextmanager
def watched(keys: dict) -> Iterator[Run]:
    """Train a YAML as `axolotl train` does, with `Recorder` as its plugin."""
    before = signal.getsignal(signal.SIGINT)
    cleanup, save = axolotl.train.cleanup_distributed, axolotl.train.save_trained_model
    EVENTS.clear()

    def cleanup_noted():
        EVENTS.append(("cleanup_distributed", None))
        cleanup()

    def save_noted(cfg, trainer, model):
        EVENTS.append(("save_trained_model", model))
        save(cfg, trainer, model)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(axolotl.train, "cleanup_distributed", cleanup_noted)
        patch.setattr(axolotl.train, "save_trained_model", save_noted)
        cfg = load_cfg(DictDefault(keys))
        data = load_preference_datasets(cfg=cfg)
        trainer = axolotl.train.train(cfg=cfg, dataset_meta=data)[2]
    Path(cfg.axolotl_config_path).unlink()  # load_cfg's copy
    yield Run(cfg, data, trainer, list(EVENTS))
    signal.signal(signal.SIGINT, before)
    del PluginManager.get_instance().plugins[f"{__name__}.Recorder"]  # axolotl would call it in other tests
    EVENTS.clear()


def built(run: Run, kind: str, model: PreTrainedModel, folder: Path) -> Trainer:
    """axolotl's DPO or KTO trainer around a model, on two answers."""
    settings = {"output_dir": str(folder), "report_to": [], "use_cpu": True, "bf16": False}
    if kind == "DPO":
        trainer_class, args = DPO, AxolotlDPOConfig(**settings)
        rows = {"prompt": ["red?"], "chosen": [" cat"], "rejected": [" dog"]}
    else:
        unpaired = {"loss_type": "apo_zero_unpaired", "train_sampling_strategy": "random"}
        trainer_class, args = KTO, AxolotlKTOConfig(**settings, **unpaired)
        rows = {"prompt": ["red?", "blue?"], "completion": [" cat", " dog"], "label": [True, False]}
    tokenizer = run.trainer.processing_class
    data = Dataset.from_dict(rows)
    return trainer_class(model, args=args, train_dataset=data, processing_class=tokenizer)
