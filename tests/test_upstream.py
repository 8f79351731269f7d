"""What the project leans on in axolotl, transformers, TRL and others: a check for each row of the table in
docs/upstream.md.

A release that changes one of these things fails here by name, and not somewhere deep. A check calls the real
thing on something small; its message says what of this package breaks, and in which files. Imports stand
within the checks, so that a name that is gone fails one of them.
"""

import dataclasses
import functools
import gc
import inspect
import json
import re
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement
from packaging.version import Version
from torch import nn

from tests.helpers import unchanged
from tests.tiny import write_jsonl
from tests.upstream import GUARDED, ROOT, TABLE, guards, rows_of

# --- The table -------------------------------------------------------------------------------------


def test_every_row_of_the_table_has_a_check_and_every_check_a_row():
    guarded = [row for words in GUARDED for row in rows_of(*words)]
    for words in GUARDED:
        assert len(rows_of(*words)) == 1, f"{words} is not one row of docs/upstream.md's table"
    assert sorted(guarded) == sorted(TABLE)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row.of}: {row.what[:40]}")
def test_the_tables_files_are_there(row):
    for name in re.findall(r"`([^`]+)`", row.where):
        assert (ROOT / "axolotl_aot" / name).is_file(), name


def test_the_installed_axolotl_is_in_the_range():
    needed = Requirement(re.search(r'"(axolotl[<>=][^"]*)"', (ROOT / "pyproject.toml").read_text())[1])
    assert needed.specifier.contains(version("axolotl")), f"{needed}, installed: {version('axolotl')}"


@pytest.fixture(scope="module")
def keys(tiny_model, data, tmp_path_factory) -> dict:
    """A YAML of axolotl's own DPO, of one step."""
    folder = tmp_path_factory.mktemp("upstream")
    return {
        "base_model": str(tiny_model),
        "plugins": ["tests.watched_run.Recorder"],
        "rl": "dpo",
        "rl_beta": 0.1,
        "trainer_cls": "tests.watched_run.DPO",
        "datasets": [
            {"path": str(data / "pairs.jsonl"), "type": {"field_prompt": "prompt"}, "split": "train"}
        ],
        "dataset_prepared_path": str(folder / "prepared"),
        "dataset_num_proc": 1,
        "skip_prepare_dataset": True,
        "val_set_size": 0,
        "output_dir": str(folder / "out"),
        "sequence_len": 128,
        "micro_batch_size": 2,
        "gradient_accumulation_steps": 1,
        "max_steps": 1,
        "num_epochs": 1,
        "save_steps": 1,
        "optimizer": "adamw_torch",
        "learning_rate": 1e-3,
        "bf16": False,
        "attn_implementation": "sdpa",
        "special_tokens": {"pad_token": "<pad>"},
    }


@pytest.fixture(scope="module")
def watched(keys, axolotl_imported):
    """What `tests/watched_run.py` holds, and `run`, what a run has left behind."""
    from tests import watched_run

    with watched_run.watched(keys) as run:
        yield SimpleNamespace(run=run, **vars(watched_run))


@pytest.fixture
def model(tiny_model):
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(tiny_model, attn_implementation="sdpa").eval()


@pytest.fixture
def lora(model):
    """A model with an adapter that does something."""
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data.fill_(0.1)
    return adapted


# --- axolotl, watched while it runs its own DPO ---------------------------------------------------


@guards("axolotl", "`register` before validation", "the plugin is not called when, or with what, it expects")
def test_axolotls_hooks(watched):
    (raw,) = watched.run.happened("register")
    assert raw["rl"] == "dpo"  # validation makes an RLType of it
    assert watched.run.cfg.upstream_key == 7  # written by `register`, and kept, as `get_input_args` names it
    assert watched.run.trainer.args.adam_beta1 == 0.5
    policy, reference = watched.run.happened("post_model_load")
    (built_for,) = watched.run.happened("add_callbacks_pre_trainer")
    assert built_for is policy is not reference
    hook = "add_callbacks_pre_trainer"
    assert watched.run.order(hook, "trainer") == [hook, "trainer"]
    ((args, kwargs),) = watched.run.happened("trainer")
    assert args == (policy, reference)
    assert any(isinstance(callback, watched.Watcher) for callback in kwargs["callbacks"])
    assert watched.run.happened("add_callbacks_post_trainer") == [watched.run.trainer]
    assert any(isinstance(c, watched.Late) for c in watched.run.trainer.callback_handler.callbacks)


@guards(
    "axolotl", "`prepare_preference_datasets` is looked up", "AOT's data are loaded by axolotl's own pipeline"
)
def test_the_name_that_every_command_loads_preference_data_by(watched, monkeypatch):
    from axolotl.cli.args import PreprocessCliArgs, TrainerCliArgs
    from axolotl.cli.evaluate import do_evaluate
    from axolotl.cli.preprocess import do_preprocess
    from axolotl.cli.train import do_train
    from axolotl.common import datasets
    from axolotl.utils.dict import DictDefault

    def stop(cfg, tokenizer):
        raise watched.Stop

    monkeypatch.setattr(datasets, "prepare_preference_datasets", stop)
    commands = ((do_train, TrainerCliArgs), (do_evaluate, TrainerCliArgs), (do_preprocess, PreprocessCliArgs))
    for command, arguments in commands:
        with pytest.raises(watched.Stop):
            command(DictDefault({**watched.run.cfg, "skip_prepare_dataset": False}), arguments())


@guards("axolotl", "the steps of its own pipeline", "the pipeline cannot load, merge, split or keep data")
def test_the_steps_of_axolotls_pipeline(data, tmp_path, axolotl_imported):
    from axolotl.utils.data import shared
    from axolotl.utils.data.lock import FileLockLoader
    from axolotl.utils.data.utils import deduplicate_and_log_datasets
    from axolotl.utils.dict import DictDefault

    cfg = DictDefault({"dataset_prepared_path": str(tmp_path), "seed": 1, "val_set_size": 8})
    entry = DictDefault({"path": str(data / "pairs.jsonl"), "split": "train"})
    (source,) = shared.datasets_with_name_generator([entry])
    rows = shared.load_dataset_with_config(source, None, streaming=False)
    merged = shared.merge_datasets([rows, rows], cfg)
    assert (len(rows), len(merged)) == (48, 96)
    alone, _ = deduplicate_and_log_datasets(dataset=merged, other_dataset=None)
    train, evaluation = shared.create_train_validation_split(alone, cfg, cfg.val_set_size)
    assert (len(alone), len(train), len(evaluation)) == (48, 40, 8)
    key = shared.generate_dataset_hash_from_config(cfg, [entry], "tokenizer")
    other = DictDefault({**entry, "split": "other"})
    assert key != shared.generate_dataset_hash_from_config(cfg, [other], "tokenizer")
    train.save_to_disk(str(shared.get_prepared_dataset_path(cfg, key)))
    assert shared.load_preprocessed_dataset(cfg, key).to_list() == train.to_list()
    inspect.signature(shared.save_preprocessed_dataset).bind(cfg, train, key, "train")
    inspect.signature(shared.try_load_from_hub).bind(cfg, key, "train")
    loader = FileLockLoader(cfg)
    assert loader.load(lambda: 7) == 7
    loader.cleanup()


@guards(
    "axolotl",
    "DPO and KTO types are functions",
    "axolotl's data set types are not found, or read another entry",
)
def test_axolotls_data_set_types(axolotl_imported):
    from axolotl.prompt_strategies import dpo, kto
    from axolotl.utils.dict import DictDefault

    cfg = DictDefault({"datasets": [{}, {"type": {"field_prompt": "q"}}]})
    paired, unpaired = {"chosen": "b", "rejected": "c"}, {"completion": "b", "label": True}
    for package, texts in ((dpo, paired), (kto, unpaired)):
        transform = package.load("user_defined.default", cfg, dataset_idx=1)
        assert {"prompt": "a", **texts}.items() <= transform({"q": "a", **texts}).items()
        assert package.load("no_such_type.default", cfg, dataset_idx=1) is None


@guards(
    "axolotl",
    "the trainer gets a `peft_config`",
    "training cannot be told from evaluation, or has no reference",
)
def test_what_the_trainer_is_given(watched, keys):
    from axolotl.cli.config import load_cfg
    from axolotl.evaluate import evaluate
    from axolotl.train import setup_model_and_trainer
    from axolotl.utils.dict import DictDefault

    def given(start: Callable, **more: Any) -> tuple[bool, bool]:
        """Whether the trainer gets a `peft_config`, and whether a reference."""
        cfg = load_cfg(DictDefault({**keys, "trainer_cls": "tests.watched_run.Unbuilt", **more}))
        with pytest.raises(watched.Stop):
            start(cfg=cfg, dataset_meta=watched.run.data)
        Path(cfg.axolotl_config_path).unlink()
        args, kwargs = watched.last("trainer")
        reference = args[1] if len(args) > 1 else kwargs.get("ref_model")
        return kwargs.get("peft_config") is not None, reference is not None

    adapter = {"adapter": "lora", "lora_r": 2, "lora_alpha": 4, "lora_target_modules": ["q_proj"]}
    assert given(setup_model_and_trainer, **adapter) == (True, False)
    assert given(setup_model_and_trainer) == (False, True)
    assert given(evaluate, **adapter) == (False, False)
    assert given(evaluate) == (False, False)


@guards("axolotl", "a `lora_model_dir` changes nothing", "the adapter to start from is loaded twice")
def test_an_adapter_to_start_from(watched, keys, lora, tmp_path):
    from axolotl.cli.config import load_cfg
    from axolotl.train import setup_model_and_trainer
    from axolotl.utils.dict import DictDefault
    from peft import PeftModel

    lora.save_pretrained(tmp_path)
    adapter = {"adapter": "lora", "lora_r": 2, "lora_alpha": 4, "lora_target_modules": ["q_proj"]}
    adapter |= {"lora_model_dir": str(tmp_path), "trainer_cls": "tests.watched_run.Unbuilt"}
    cfg = load_cfg(DictDefault({**keys, **adapter}))
    with pytest.raises(watched.Stop):
        setup_model_and_trainer(cfg=cfg, dataset_meta=watched.run.data)
    Path(cfg.axolotl_config_path).unlink()
    args, kwargs = watched.last("trainer")
    assert not isinstance(args[0] if args else kwargs["model"], PeftModel)
    assert kwargs["peft_config"].r == 2


@guards(
    "axolotl", "steps past a garbage collection", "AOTTrainer skips something else, or has nothing to skip"
)
def test_the_garbage_collection_of_axolotls_dpo_trainer(watched, model, tmp_path, monkeypatch):
    from axolotl.core.trainers.dpo.trainer import AxolotlDPOTrainer

    trainer = watched.built(watched.run, "DPO", model, tmp_path)
    trainer.current_gradient_accumulation_steps = 1  # as `train` would have set it
    collections = []
    monkeypatch.setattr(gc, "collect", lambda: collections.append(1))
    batch = next(iter(trainer.get_train_dataloader()))
    super(AxolotlDPOTrainer, trainer).training_step(trainer.model, dict(batch), None)
    assert not collections
    AxolotlDPOTrainer.training_step(trainer, trainer.model, dict(batch), None)
    assert collections == [1]


@guards(
    "axolotl", "`post_train` is called twice", "the report is written too early, never, or from every process"
)
def test_post_train_is_called_twice(watched, monkeypatch):
    from axolotl.utils import logging

    order = watched.run.order("post_train", "cleanup_distributed")
    assert order == ["post_train", "cleanup_distributed", "post_train"]

    def ask():
        raise watched.Stop

    monkeypatch.setattr(logging, "is_main_process", ask)
    logger = logging.get_logger("axolotl.upstream")
    logger.warning("not asked which process this is", main_process_only=False)
    with pytest.raises(watched.Stop):
        logger.warning("asked")


@guards("axolotl", "`load_cfg` takes a dict", "aot-report cannot read a YAML, or empties the log of the run")
def test_load_cfg_takes_a_dict(keys, watched, tmp_path, monkeypatch):
    from axolotl.cli.config import load_cfg
    from axolotl.utils.dict import DictDefault
    from axolotl.utils.tee import close_debug_log

    monkeypatch.setenv("AXOLOTL_TEE_STDOUT", "0")
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # both are put back, whatever axolotl restores
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    close_debug_log()  # axolotl opens one a process
    log = tmp_path / "debug.log"
    log.write_text("of a run before\n")
    cfg = load_cfg(DictDefault({**keys, "output_dir": str(tmp_path)}))
    close_debug_log()
    assert "of a run before" not in log.read_text()
    copy = Path(cfg.axolotl_config_path)
    assert keys["base_model"] in copy.read_text()
    copy.unlink()


@guards(
    "axolotl", "`pre_model_load` and `post_model_build`", "policy and reference have other rows of new tokens"
)
def test_the_hooks_before_rows_of_new_tokens_are_drawn(watched, keys, tmp_path, monkeypatch):
    from axolotl.cli.config import load_cfg
    from axolotl.integrations.base import PluginManager
    from axolotl.loaders import ModelLoader, load_tokenizer
    from axolotl.utils.dict import DictDefault

    cfg = load_cfg(DictDefault({**keys, "tokens": ["<a>"], "output_dir": str(tmp_path)}))
    Path(cfg.axolotl_config_path).unlink()
    called = []
    rows = "pre_model_load", "post_model_build", "post_model_load"
    for hook in rows:
        monkeypatch.setattr(
            PluginManager.get_instance().plugins["tests.watched_run.Recorder"],
            hook,
            lambda cfg, *model, hook=hook: called.append((hook, *map(vocabulary, model))),
        )
    tokenizer = load_tokenizer(cfg)
    for reference in (False, True):
        ModelLoader(cfg, tokenizer, reference_model=reference).load()
    before = len(tokenizer) - 1
    once = [("pre_model_load",), ("post_model_build", before), ("post_model_load", before + 1)]
    assert called == 2 * once


def vocabulary(model: nn.Module) -> int:
    return model.get_input_embeddings().num_embeddings


@guards("axolotl", "what `merge_method` merges", "adapters are refused or warned of that are merged right")
def test_what_axolotls_own_merge_leaves_out(watched, model, tiny_model, tmp_path):
    from axolotl.cli.utils.lora_merge import merge_lora_sharded_efficient
    from axolotl.utils.schemas.peft import LoraConfig as Keys
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import load_file

    assert Keys.model_fields["merge_method"].annotation.__args__[0].__args__ == ("legacy", "memory_efficient")
    for name, keys, merged in (
        ("copy", {"modules_to_save": ["embed_tokens"]}, True),
        ("rows", {"trainable_token_indices": [5]}, False),
        ("lora", {"target_modules": ["q_proj", "embed_tokens"]}, False),
    ):
        adapted = get_peft_model(model, LoraConfig(**{"r": 2, "target_modules": ["q_proj"], **keys}))
        for parameter in adapted.parameters():
            parameter.data.add_(0.1 if parameter.requires_grad else 0)
        adapted.save_pretrained(tmp_path / name)
        merge_lora_sharded_efficient(tiny_model, tmp_path / name, tmp_path / name / "merged")
        key = "model.embed_tokens.weight"
        found, base = (
            load_file(f / "model.safetensors")[key] for f in (tmp_path / name / "merged", tiny_model)
        )
        assert torch.equal(found, base) is not merged
        model = adapted.unload()
    # it saves the adapter first, and then the model that it loaded
    assert watched.run.happened("save_trained_model") == watched.run.happened("post_model_load")[:1]


@guards(
    "axolotl",
    "keys that its RL builder does not read",
    "keys are set twice, or refused though axolotl reads them",
)
def test_the_keys_that_axolotls_rl_builder_does_not_read(watched):
    from axolotl.core.builders import HFRLTrainerBuilder
    from axolotl.utils.dict import DictDefault

    from axolotl_aot.training.run_setup import SAME_NAME
    from axolotl_aot.unread_keys import SUPERVISED_ONLY

    read = set()

    class Watched(DictDefault):
        def __getitem__(self, key):
            read.add(key)
            return super().__getitem__(key)

        def get(self, key, *default):
            read.add(key)
            return super().get(key, *default)

    trainer = watched.run.trainer
    builder = HFRLTrainerBuilder(Watched(watched.run.cfg), trainer.model, trainer.processing_class)
    builder.train_dataset, builder.eval_dataset = watched.run.data.train_dataset, None
    read.clear()
    builder._build_training_arguments(10)
    builder.get_callbacks()
    builder.get_post_trainer_create_callbacks(trainer)
    assert {"learning_rate", "rl_beta", "max_steps"} <= read
    ours = {*SAME_NAME, *SUPERVISED_ONLY, "early_stopping_patience", "load_best_model_at_end"}
    assert not ours & read


@guards("axolotl", "its schema's fields", "keys that axolotl knows are refused, or unknown ones pass")
def test_where_axolotl_names_its_keys(axolotl_imported):
    from axolotl.cli.args import EvaluateCliArgs, InferenceCliArgs, PreprocessCliArgs, TrainerCliArgs
    from axolotl.integrations.cut_cross_entropy import CutCrossEntropyPlugin
    from axolotl.utils.import_helper import get_cls_from_module_str
    from axolotl.utils.schemas.config import AxolotlInputConfig

    known = AxolotlInputConfig.model_fields
    assert {"learning_rate", "rl_beta", "datasets"} <= known.keys()
    assert known["overrides_of_model_config"].validation_alias == "model_config"
    assert AxolotlInputConfig.model_config.get("extra", "ignore") == "ignore"  # others are dropped
    options = {f.name for cls in (PreprocessCliArgs, TrainerCliArgs) for f in dataclasses.fields(cls)}
    assert {"debug", "debug_num_examples", "prompter"} <= options
    assert dataclasses.fields(EvaluateCliArgs) and dataclasses.fields(InferenceCliArgs)
    other = get_cls_from_module_str(CutCrossEntropyPlugin().get_input_args())
    assert "cut_cross_entropy" in other.model_fields


@guards(
    "axolotl", "`save_fsdp2_lora_adapter`", "saved adapters are mended that need it no more, or too early"
)
def test_what_axolotl_saves_of_an_adapter_under_fsdp2(watched, lora, tmp_path):
    from axolotl.integrations.expert_parallel.shard import save_fsdp2_lora_adapter
    from safetensors.torch import load_file

    from axolotl_aot.training.fsdp2_fixes import PREFIX

    # axolotl hands over the model that it loaded; TRL has put the adapter into it, and PEFT's wrapping around
    assert watched.run.happened("save_trained_model") == watched.run.happened("post_model_load")[:1]
    assert save_fsdp2_lora_adapter(lora.get_base_model(), str(tmp_path))
    found = load_file(tmp_path / "adapter_model.safetensors")
    assert found and not any(key.startswith(PREFIX) for key in found)
    assert [saved for saved, _ in watched.run.happened("post_train")] == [False, True]


@guards("axolotl", "Ctrl-C", "Ctrl-C saves an adapter twice, or a report cannot be interrupted")
def test_axolotls_handler_of_ctrl_c(watched):
    for _, handler in watched.run.happened("post_train"):
        assert inspect.getmodule(handler).__name__ == "axolotl.train"
    from axolotl.utils.distributed import cleanup_distributed

    inspect.signature(cleanup_distributed).bind()


# --- transformers ----------------------------------------------------------------------------------


def small_trainer(folder: Path, base: type | None = None, **args: Any) -> Any:
    """Trainer around a model of one weight; 4 samples, 0 to 3."""
    from transformers import Trainer, TrainingArguments

    class Square(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, x, **kwargs):
            return {"loss": (self.weight * x).mean()}

    settings = {"per_device_train_batch_size": 1, "max_steps": 1, "report_to": [], "use_cpu": True, **args}
    settings["label_names"] = ["x"]  # or Trainer asks for no loss in an evaluation
    settings = {"save_strategy": "no", **settings}
    arguments = TrainingArguments(
        output_dir=str(folder), disable_tqdm=True, remove_unused_columns=False, **settings
    )
    rows = [{"x": torch.tensor(float(i))} for i in range(4)]
    return (base or Trainer)(Square(), arguments, train_dataset=rows, eval_dataset=rows)


@guards(
    "transformers",
    "states of optimizer and scheduler replace",
    "keys are refused on resume that would have had an effect, or the other way round",
)
def test_what_the_states_of_optimizer_and_scheduler_bring_back():
    from transformers import get_scheduler

    def made(rate: float, decay: float, steps: int) -> tuple[Any, Any]:
        optimizer = torch.optim.AdamW([nn.Parameter(torch.ones(1))], lr=rate, weight_decay=decay)
        return optimizer, get_scheduler("linear", optimizer, num_warmup_steps=0, num_training_steps=steps)

    before, now = made(0.1, 0.01, steps=4), made(0.5, 0.2, steps=8)
    for old, new in zip(before, now, strict=True):
        new.load_state_dict(old.state_dict())
    optimizer, scheduler = now
    optimizer.step()
    scheduler.step()
    (group,) = optimizer.param_groups
    assert group["weight_decay"] == 0.01
    assert group["lr"] == pytest.approx(0.1 * 7 / 8)


@guards(
    "transformers", "`TensorBoardCallback.tb_writer`", "an evaluation's plot is not shown, or at another step"
)
def test_where_tensorboard_and_wandb_log(monkeypatch, tmp_path):
    import wandb
    from torch.utils.tensorboard import SummaryWriter
    from transformers import TrainerControl, TrainerState
    from transformers.integrations import TensorBoardCallback, WandbCallback

    writer = SummaryWriter(tmp_path)
    assert TensorBoardCallback(writer).tb_writer is writer
    inspect.signature(writer.add_image).bind("tag", None, 1, dataformats="HWC")
    logged = {}
    monkeypatch.setattr(wandb, "log", logged.update)
    callback = WandbCallback()
    callback._initialized = True
    state = TrainerState(global_step=7, is_world_process_zero=True)
    callback.on_log(None, state, TrainerControl(), logs={"loss": 1.0})
    assert logged["train/global_step"] == 7


@guards(
    "transformers",
    "`on_train_end` comes after the best model is loaded",
    "the report's answers are another model's, or not logged",
)
def test_when_training_ends(tmp_path):
    from transformers import TrainerCallback

    weights = []

    class Last(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            weights.append(model.weight.item())

        def on_train_end(self, args, state, control, model=None, **kwargs):
            seen.append(("last", model.weight.item()))

    class First(TrainerCallback):
        def on_train_end(self, *args, **kwargs):
            seen.append(("first", None))

    seen = []
    best = {"load_best_model_at_end": True, "greater_is_better": True, "metric_for_best_model": "eval_loss"}
    often = {
        "eval_strategy": "steps",
        "eval_steps": 1,
        "save_strategy": "steps",
        "save_steps": 1,
        "max_steps": 3,
    }
    trainer = small_trainer(tmp_path, learning_rate=0.1, **best, **often)
    trainer.add_callback(Last())
    trainer.callback_handler.callbacks.insert(0, First())
    trainer.train()
    # the loss falls, and the greatest is the best
    assert weights[0] > weights[-1] and seen == [("first", None), ("last", pytest.approx(weights[0]))]


@guards(
    "transformers",
    "`Trainer.get_batch_samples`",
    "a step's micro-batches are not cut, weighed or drawn as intended",
)
def test_a_step_of_trainer(tmp_path):
    from transformers import Trainer

    class Backwards(Trainer):
        def _get_train_sampler(self, train_dataset=None):
            return [3, 2, 1, 0]

        def get_batch_samples(self, epoch_iterator, num_batches, device):
            batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
            steps.append([float(batch["x"]) for batch in batches])
            return batches[::-1], count

        def training_step(self, model, inputs, num_items_in_batch=None):
            loss = super().training_step(model, inputs, num_items_in_batch)
            losses.append((float(inputs["x"]), float(loss)))
            return loss

    steps, losses = [], []
    trainer = small_trainer(tmp_path, Backwards, gradient_accumulation_steps=4)
    assert trainer._train_batch_size == 1
    trainer.train()
    assert steps == [[3, 2, 1, 0]]
    # what is handed out is what is trained on, each divided by the number of accumulation steps
    assert losses == [(x, pytest.approx(x / 4)) for x in (0, 1, 2, 3)]


@guards("transformers", "`evaluation_loop` takes no loss", "eval_loss is an average over batches")
def test_an_evaluation_without_losses(tmp_path):
    from transformers import Trainer

    class Silent(Trainer):
        def prediction_step(self, model, inputs, *args, **kwargs):
            return None, None, None

    metrics = small_trainer(tmp_path, Silent).evaluate(metric_key_prefix="test")
    assert "test_loss" not in metrics
    assert "test_loss" in small_trainer(tmp_path).evaluate(metric_key_prefix="test")


@guards(
    "transformers",
    "`trainer_state.json` is written last",
    "an incomplete checkpoint is taken for a complete one",
)
def test_a_checkpoint(watched):
    from transformers import EarlyStoppingCallback, Trainer

    from axolotl_aot.training.resume import COUNTER, STATE_FILE

    (before,) = watched.run.happened("state")
    folder = Path(watched.run.cfg.output_dir) / "checkpoint-1"
    after = {path.name for path in folder.glob("*")}
    assert after - before == {STATE_FILE}
    assert {"model.safetensors", "optimizer.pt", "scheduler.pt"} <= before
    saved = json.loads((folder / STATE_FILE).read_text())["stateful_callbacks"]
    assert saved["Watcher"] == {"args": {}, "attributes": {"trains": True}}
    assert COUNTER in EarlyStoppingCallback().state()["attributes"]
    inspect.signature(Trainer._load_from_checkpoint).bind(watched.run.trainer, "folder", None)


@guards(
    "transformers",
    "`_prepare_inputs` casts",
    "the reference's log-probabilities lose digits, or 4-bit models a mode",
)
def test_casts_under_deepspeed_and_4_bit_models(tiny_model, model):
    from transformers import BitsAndBytesConfig, LlamaForCausalLM, Trainer

    plugin = SimpleNamespace(hf_ds_config=SimpleNamespace(dtype=lambda: torch.bfloat16))
    accelerator = SimpleNamespace(state=SimpleNamespace(deepspeed_plugin=plugin))
    args = SimpleNamespace(device="cpu")
    trainer = SimpleNamespace(args=args, accelerator=accelerator, is_deepspeed_enabled=True)
    trainer._prepare_input = functools.partial(Trainer._prepare_input, trainer)
    assert Trainer._prepare_inputs(trainer, {"x": torch.ones(1)})["x"].dtype == torch.bfloat16
    trainer.is_deepspeed_enabled = False
    assert Trainer._prepare_inputs(trainer, {"x": torch.ones(1)})["x"].dtype == torch.float32
    quantized = LlamaForCausalLM.from_pretrained(
        tiny_model, quantization_config=BitsAndBytesConfig(load_in_4bit=True)
    )
    assert quantized.is_loaded_in_4bit
    assert not getattr(model, "is_loaded_in_4bit", False)


@guards("transformers", "is body (`base_model`), head", "log-probabilities cannot be had without all logits")
def test_a_forward_pass_is_body_and_head(model):
    ids = torch.arange(8)[None]
    body, head = model.base_model, model.get_output_embeddings()
    assert {body, head} <= set(model.children())
    calls = []
    handle = head.register_forward_hook(lambda module, args, result: calls.append(args[0]))
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits
    handle.remove()
    (hidden,) = calls
    assert hidden.shape == (1, 8, model.config.hidden_size)
    with torch.no_grad():
        assert torch.equal(body(input_ids=ids, use_cache=False).last_hidden_state, hidden)
    assert torch.equal(head(hidden), logits)
    assert model.config.get_text_config().vocab_size == logits.shape[-1]


@guards("transformers", "positions that begin again", "sequences without padding see each other")
def test_sequences_in_one_row(model):
    first, second = torch.arange(5, 12)[None], torch.arange(40, 46)[None]
    positions = torch.cat([torch.arange(7), torch.arange(6)])[None]
    with torch.no_grad():
        apart = torch.cat([model(input_ids=ids).logits for ids in (first, second)], dim=1)
        row = torch.cat([first, second], dim=1)
        together = model(input_ids=row, position_ids=positions, use_cache=False).logits
        mixed = model(input_ids=row, use_cache=False).logits
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-4)
    assert (mixed - apart).abs().max() > 1e-2


@guards("transformers", "a mask of four dimensions", "completions that share a prompt see each other")
def test_a_mask_of_ones_own(model):
    """Two continuations of 5 tokens, each of which sees those and itself; the last one's positions go on."""
    prompt, first, second = torch.arange(5, 10), torch.arange(40, 43), torch.arange(50, 52)
    row = torch.cat([prompt, first, second])[None]
    seen = torch.ones(10, 10).tril().bool()
    seen[8:, 5:8] = False
    positions = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7, 5, 6]])
    with torch.no_grad():
        alone = model(input_ids=torch.cat([prompt, second])[None]).logits
        together = model(
            input_ids=row, position_ids=positions, attention_mask=seen[None, None], use_cache=False
        ).logits
    torch.testing.assert_close(together[0, [0, 1, 2, 3, 4, 8, 9]], alone[0], rtol=1e-4, atol=1e-4)


@guards("transformers", "hand on arguments", "keys and values of a shared prompt are not gathered")
def test_what_reaches_an_attention_function(tiny_model):
    from transformers import AttentionInterface, AutoModelForCausalLM
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.modeling_flash_attention_utils import _flash_attention_forward
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    seen = []

    def attention(module, query, key, value, attention_mask, **kwargs):
        seen.append((tuple(query.shape), tuple(key.shape), attention_mask.ndim, kwargs.pop("aot_segments")))
        return sdpa_attention_forward(module, query, key, value, None, **kwargs)

    AttentionInterface.register("of this test", attention)
    assert ALL_ATTENTION_FUNCTIONS["of this test"] is attention
    model = AutoModelForCausalLM.from_pretrained(tiny_model, attn_implementation="of this test")
    mask = torch.ones(1, 1, 1, 1, dtype=torch.bool)
    model(input_ids=torch.arange(5, 12)[None], attention_mask=mask, aot_segments="these", use_cache=False)
    assert seen == [((1, 4, 7, 16), (1, 2, 7, 16), 4, "these")] * 2  # of both layers
    lengths = {"cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"}
    assert lengths <= set(inspect.signature(_flash_attention_forward).parameters)


@guards(
    "transformers",
    "a flash attention of whatever name",
    "with flash attention sequences are padded, and prompts are not shared",
)
def test_how_flash_attention_is_registered():
    from transformers.integrations import hub_kernels
    from transformers.integrations.flash_attention import flash_attention_forward
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, flash_attention_mask
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    names = {name for name in ALL_ATTENTION_FUNCTIONS if name.startswith("flash_attention_")}
    assert names >= {"flash_attention_2", "flash_attention_3", "flash_attention_4"}
    for name in names:
        assert ALL_ATTENTION_FUNCTIONS[name] is flash_attention_forward
        assert ALL_MASK_ATTENTION_FUNCTIONS[name] is flash_attention_mask
    source = inspect.getsource(hub_kernels.load_and_register_attn_kernel)  # it needs a network to be run
    assert "attention_wrapper = flash_attention_forward" in source
    assert 'mask_implementation = "flash_attention_2"' in source


@guards("torch", "`varlen_attn`", "SDPA on a GPU cannot gather a shared prompt's keys and values")
def test_attention_over_lengths_of_torch():
    from torch.nn.attention.varlen import varlen_attn

    names = list(inspect.signature(varlen_attn).parameters)
    assert names[:7] == ["query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k"]
    assert {"scale", "window_size"} <= set(names)
    if Version(torch.__version__) >= Version("2.12"):
        assert "enable_gqa" in names


@guards(
    "transformers",
    "`config._attn_implementation`",
    "a way of scoring, or a file of the reference, is another model's",
)
def test_what_a_models_configuration_tells(model, tiny_model):
    config = model.config
    assert (config._attn_implementation, config._name_or_path) == ("sdpa", str(tiny_model))
    assert config._commit_hash is None  # of the hub, for a model of the hub
    assert config.to_diff_dict()["hidden_size"] == 64


@guards("transformers", "Trainer sets `sync_gradients` itself", "gradients are exchanged too often, or never")
def test_when_gradients_are_exchanged(tmp_path):
    from transformers import Trainer

    class Asks(Trainer):
        def training_step(self, *args, **kwargs):
            asked.append(self.accelerator.gradient_state.sync_gradients)
            return super().training_step(*args, **kwargs)

    asked = []
    trainer = small_trainer(tmp_path, Asks, gradient_accumulation_steps=3)
    trainer.train()
    assert asked == [False, False, True]
    trainer.accelerator.gradient_state._set_sync_gradients(False)
    assert not trainer.accelerator.sync_gradients
    trainer.accelerator.gradient_state._set_sync_gradients(True)


@guards(
    "accelerate", "`parallelism_config` is None", "graphs are kept under engines that exchange activations"
)
def test_parallelism_other_than_of_data(tmp_path):
    from accelerate.utils import ParallelismConfig

    assert small_trainer(tmp_path).accelerator.parallelism_config is None
    sizes = [ParallelismConfig(**{name: 2}).non_data_parallel_size for name in ("tp_size", "cp_size")]
    assert sizes == [2, 2]
    assert ParallelismConfig(dp_replicate_size=2).non_data_parallel_size == 1


@guards("TRL", "under the argument `activation_offloading`", "graphs are kept that should be offloaded")
def test_the_argument_that_offloads_activations():
    from axolotl.core.trainers.dpo.args import AxolotlDPOConfig
    from axolotl.core.training_args import AxolotlKTOConfig

    for arguments in (AxolotlDPOConfig, AxolotlKTOConfig):
        fields = {field.name: field.default for field in dataclasses.fields(arguments)}
        assert not fields["activation_offloading"]


# --- TRL -------------------------------------------------------------------------------------------


@guards(
    "transformers", "`_keys_to_ignore_on_save`", "runs with adapters on tied embeddings end without a report"
)
def test_names_that_are_not_saved(model, tmp_path):
    from safetensors.torch import load_file

    model._keys_to_ignore_on_save = {"lm_head.weight", "not a name of it"}
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert set(model.state_dict()) - set(saved) == {"lm_head.weight"}


@pytest.mark.parametrize("kind", ["DPO", "KTO"])
@guards(
    "TRL", "it rounds what is trained to bfloat16", "copies of the base model's weights are restored in vain"
)
def test_what_is_trained_over_quantized_weights(watched, tiny_model, tmp_path, kind):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    settings = BitsAndBytesConfig(load_in_4bit=True)
    model = AutoModelForCausalLM.from_pretrained(
        tiny_model, quantization_config=settings, dtype=torch.float32
    )
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"]))
    trained = watched.built(watched.run, kind, adapted, tmp_path).model
    types = {p.dtype for p in trained.parameters() if p.requires_grad}
    assert types == {torch.bfloat16}


@pytest.mark.parametrize("kind", ["DPO", "KTO"])
@guards(
    "TRL",
    "`_metrics` is averaged",
    "metrics are lost, or a mixture of experts trains without its router's loss",
)
def test_metrics_and_the_routers_loss(watched, model, tmp_path, kind):
    from transformers import MixtralConfig, MixtralForCausalLM

    trainer = watched.built(watched.run, kind, model, tmp_path)
    trainer.model.train()
    trainer._metrics["train"]["ours"] += [1.0, 4.0]
    trainer.log({"loss": 1.0})
    assert trainer.state.log_history[-1]["ours"] == 2.5
    assert not trainer._metrics["train"]
    assert trainer.aux_loss_enabled is False
    config = MixtralConfig(
        vocab_size=300, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=2,
    )  # fmt: skip
    MixtralForCausalLM(config).save_pretrained(tmp_path / "experts")
    experts = watched.built(
        watched.run, kind, MixtralForCausalLM.from_pretrained(tmp_path / "experts"), tmp_path
    )
    assert experts.aux_loss_enabled is True
    assert experts.router_aux_loss_coef == experts.args.router_aux_loss_coef


@pytest.mark.parametrize("kind", ["DPO", "KTO"])
@guards(
    "TRL",
    "the adapter name `ref`",
    "the reference is the trained adapter, or the policy is scored as its reference",
)
def test_the_reference_of_an_adapter(watched, model, lora, tmp_path, kind):
    from trl.trainer.utils import use_adapter

    ids = torch.arange(8)[None]
    with torch.no_grad():
        policy = lora(input_ids=ids).logits
        with use_adapter(lora, None):
            reference = lora(input_ids=ids).logits
        assert torch.equal(lora(input_ids=ids).logits, policy)
        assert not torch.equal(policy, reference)
        trained = watched.built(watched.run, kind, lora, tmp_path).model  # an adapter that was loaded
        assert set(trained.peft_config) == {"default", "ref"}
        with use_adapter(trained, "ref"):
            assert trained.active_adapter == "ref"
        trained.delete_adapter("ref")
        assert set(trained.peft_config) == {"default"}


@pytest.mark.parametrize("kind", ["DPO", "KTO"])
@guards("TRL", "`_prepare_dataset` is where", "TRL tokenizes the prepared data again, or drops their columns")
def test_where_trl_tokenizes(watched, model, tmp_path, kind):
    trainer = watched.built(watched.run, kind, model, tmp_path)
    columns, prepared = watched.last("_prepare_dataset")
    completions = {"chosen_ids", "rejected_ids"} if kind == "DPO" else {"completion_ids"}
    ids = {"prompt_ids", *completions}
    assert not ids & columns and ids <= prepared
    assert ids <= set(trainer.train_dataset.column_names)
    trainer._set_signature_columns_if_needed()
    assert ids <= set(trainer._signature_columns)
    assert isinstance(trainer._signature_columns, list)


@guards(
    "TRL",
    "`loss_type: apo_zero_unpaired`",
    "KTO's trainer prepares KL data, or refuses shuffled rows and batches of one",
)
def test_kto_without_a_kl_term(watched, model, tmp_path):
    trainer = watched.built(watched.run, "KTO", model, tmp_path)
    assert trainer.calculate_KL is False
    assert trainer.args.train_sampling_strategy == "random"
    assert not any("KL" in column for column in trainer.train_dataset.column_names)


# --- accelerate, DeepSpeed -------------------------------------------------------------------------


@guards(
    "accelerate",
    "`load_fsdp_model` loads",
    "adapters are loaded into shards that accelerate has filled already",
)
def test_which_process_loads_an_adapter_under_fsdp2(lora, tmp_path):
    from accelerate import PartialState
    from accelerate.utils import FullyShardedDataParallelPlugin
    from accelerate.utils.fsdp_utils import load_fsdp_model
    from peft import get_peft_model_state_dict

    PartialState()  # accelerate's logger asks it
    saved = {key: tensor + 1 for key, tensor in get_peft_model_state_dict(lora).items()}
    torch.save(saved, tmp_path / "pytorch_model_fsdp.bin")
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, state_dict_type="FULL_STATE_DICT")

    def loads(main: bool) -> bool:
        """Whether a process of two has the file's weights afterwards."""
        accelerator = SimpleNamespace(
            wait_for_everyone=lambda: None,
            num_processes=2,
            process_index=int(not main),
            is_main_process=main,
            is_fsdp2=True,
        )
        load_fsdp_model(plugin, accelerator, lora, str(tmp_path), adapter_only=True)
        found = get_peft_model_state_dict(lora)
        return all(torch.equal(found[key], tensor) for key, tensor in saved.items())

    assert not loads(main=False)
    assert loads(main=True)


@guards("accelerate, DeepSpeed", "evaluate only what they train", "an evaluation is refused that would work")
def test_engines_that_cannot_evaluate_alone(tmp_path):
    from accelerate import Accelerator
    from transformers import TrainingArguments
    from transformers.integrations.deepspeed import (
        HfTrainerDeepSpeedConfig,
        deepspeed_init,
        unset_hf_deepspeed_config,
    )

    class Sharding(Accelerator):
        is_fsdp2 = True

    with pytest.raises(ValueError, match="FSDP2"):
        Sharding().prepare(nn.Linear(1, 1))
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)

    def evaluates(stage: int) -> bool:
        config = HfTrainerDeepSpeedConfig({"zero_optimization": {"stage": stage}})
        state = SimpleNamespace(deepspeed_plugin=SimpleNamespace(hf_ds_config=config))
        trainer = SimpleNamespace(model=None, args=args, accelerator=SimpleNamespace(state=state))
        try:
            deepspeed_init(trainer, num_training_steps=0, inference=True)
        except ValueError as error:
            assert "Stage 3" in str(error)
            return False
        finally:
            unset_hf_deepspeed_config()
        return True

    assert [evaluates(stage) for stage in (1, 2, 3)] == [False, False, True]


@guards(
    "accelerate", "micro-batches are dealt out in turn", "copies are sorted and counted, or samples are not"
)
def test_how_samples_are_dealt_out():
    from accelerate import Accelerator
    from accelerate.data_loader import BatchSamplerShard
    from torch.utils.data import BatchSampler, DataLoader

    batches = BatchSampler(range(10), batch_size=2, drop_last=False)
    assert list(BatchSamplerShard(batches, 2, 0)) == [[0, 1], [4, 5], [8, 9]]
    assert list(BatchSamplerShard(batches, 2, 1)) == [[2, 3], [6, 7], [0, 1]]
    short = BatchSampler(range(9), batch_size=2, drop_last=False)
    assert [list(BatchSamplerShard(short, 2, i))[-1] for i in (0, 1)] == [[8, 0], [1, 2]]
    accelerator = Accelerator()
    gathered = []
    for _ in accelerator.prepare_data_loader(DataLoader(range(5), batch_size=2)):
        gathered.append(accelerator.gather_for_metrics(torch.arange(2)).tolist())  # the last one filled up
    assert gathered == [[0, 1], [0, 1], [0]]


# --- PEFT, datasets, tokenizers, bitsandbytes ------------------------------------------------------


@guards("PEFT", "`ModulesToSaveWrapper`", "trained copies of embeddings do not begin as the reference's")
def test_what_trains_in_place_of_the_embeddings(model, tmp_path):
    from peft import LoraConfig, get_peft_model
    from peft.utils import ModulesToSaveWrapper, TrainableTokensWrapper

    keys = {"modules_to_save": ["lm_head"], "trainable_token_indices": [5, 7]}
    base = {"embed": model.model.embed_tokens.weight.clone(), "head": model.lm_head.weight.clone()}
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj"], **keys))
    embed, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert isinstance(head, ModulesToSaveWrapper) and isinstance(embed, TrainableTokensWrapper)
    assert torch.equal(head.original_module.weight, base["head"])
    assert torch.equal(head.modules_to_save["default"].weight, base["head"])
    rows = embed.token_adapter
    assert torch.equal(rows.trainable_tokens_delta["default"], base["embed"][[5, 7]])
    assert torch.equal(rows.trainable_tokens_original["default"], base["embed"][[5, 7]])
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)
    adapted.save_pretrained(tmp_path)
    adapted.load_adapter(str(tmp_path), "default", is_trainable=True)
    types = {name: p.dtype for name, p in adapted.named_parameters() if "lora_" in name}
    assert set(types.values()) == {torch.float32}


@guards(
    "PEFT", "a second adapter's weights", "a round's reference is trained, saved, or not the policy's copy"
)
def test_a_second_adapter(lora, tmp_path):
    import copy

    def trained() -> set[str]:
        return {name for name, p in lora.named_parameters() if p.requires_grad}

    first = trained()
    lora.add_adapter("ref", copy.deepcopy(lora.peft_config["default"]))
    lora.set_adapter("ref")
    assert trained() == {name.replace(".default.", ".ref.") for name in first}
    lora.set_adapter("default")
    assert trained() == first and lora.active_adapter == "default"
    lora.save_pretrained(tmp_path / "both")
    lora.save_pretrained(tmp_path / "one", selected_adapters=["default"])
    assert (tmp_path / "both/ref").is_dir() and not (tmp_path / "one/ref").exists()
    assert (tmp_path / "one/adapter_model.safetensors").is_file()


@guards("axolotl", "`apply_qkv` and `apply_o`", "fused LoRA kernels are not applied, or break other models")
def test_how_fused_lora_kernels_come_into_a_model(model, tiny_model):
    from axolotl.model_support import check_capability, get_model_support
    from axolotl.monkeypatch import lora_kernels as kernels
    from axolotl.utils.dict import DictDefault
    from axolotl.utils.schemas.config import AxolotlConfigWCapabilities
    from peft import LoraConfig, get_peft_model

    check_capability(get_model_support("llama"), "lora_kernels", "llama")
    with pytest.raises(ValueError, match="paddleocr_vl"):
        check_capability(get_model_support("paddleocr_vl"), "lora_kernels", "paddleocr_vl")
    keys = {"lora_qkv_kernel", "lora_o_kernel", "lora_mlp_kernel", "lora_embedding_kernel"}
    chosen = AxolotlConfigWCapabilities.check_auto_enable_lora_kernels
    assert {key for key, value in chosen({"adapter": "lora"}).items() if value is True} == keys
    assert not keys & chosen({"adapter": "lora", "rl": "dpo"}).keys()
    names = ["q_proj", "k_proj", "v_proj", "o_proj"]
    adapted = get_peft_model(model, LoraConfig(target_modules=names, task_type="CAUSAL_LM"))
    layers = kernels.get_layers(adapted)
    (attention,) = kernels.find_self_attn_in_layer(layers[0])
    assert [part[-1] for part in kernels.find_mlp_in_layer(layers[0])] == [layers[0].mlp]
    kind = type(attention)
    cfg = DictDefault(base_model=str(tiny_model), lora_qkv_kernel=True, lora_o_kernel=True)
    with unchanged(kind):
        kernels.patch_self_attn_lora(cfg)
        assert {"apply_qkv", "apply_o"} <= set(kind.forward.__code__.co_names)
        kernels.apply_lora_kernel_patches(adapted, cfg)
        assert attention.apply_qkv.__func__ is kernels.apply_lora_qkv
        assert attention.apply_o.__func__ is kernels.apply_lora_o
        assert callable(kernels.original_apply_qkv) and callable(kernels.original_apply_o)


@guards("axolotl", "`get_trainer_cls` names", "another plugin's trainer runs in place of AOT's")
def test_a_plugins_trainer_goes_first(monkeypatch):
    from axolotl.core.builders.rl import HFRLTrainerBuilder
    from axolotl.integrations.base import BasePlugin, PluginManager

    class Other(BasePlugin):
        def get_trainer_cls(self, cfg):
            return dict

    monkeypatch.setattr(PluginManager.get_instance(), "plugins", {"first": BasePlugin(), "other": Other()})
    assert PluginManager.get_instance().get_trainer_cls({}) is dict
    source = inspect.getsource(HFRLTrainerBuilder._get_trainer_cls)
    assert source.index("plugin_manager.get_trainer_cls(") < source.index("self.cfg.trainer_cls")


@guards(
    "PEFT", "`cast_input_dtype_enabled`", "inputs of LoRA's layers are copied, or kernels compute another"
)
def test_how_a_lora_layer_casts_its_input(tiny_model):
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaForCausalLM

    for dora in (False, True):
        config = LoraConfig(target_modules=["q_proj"], use_dora=dora)
        adapted = get_peft_model(LlamaForCausalLM.from_pretrained(tiny_model), config)
        layer = adapted.base_model.model.model.layers[0].self_attn.q_proj
        assert bool(layer.lora_variant) is dora
        for enabled, dtype in ((True, torch.float32), (False, torch.bfloat16)):
            layer.cast_input_dtype_enabled = enabled
            given = torch.ones(1, dtype=torch.bfloat16)
            assert layer._cast_input_dtype(given, torch.float32).dtype == dtype


@guards("PEFT", "which `init_lora_weights` change", "a round starts from another policy than its adapter's")
def test_which_adapters_change_their_base(tiny_model):
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaForCausalLM

    from axolotl_aot.training.start_checks import KEEPS_THE_BASE, ONCE_ONLY

    def adapted(**settings):
        model = LlamaForCausalLM.from_pretrained(tiny_model)
        return get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"], **settings))

    before = LlamaForCausalLM.from_pretrained(tiny_model).model.layers[0].self_attn.q_proj.weight
    for value in (*KEEPS_THE_BASE, "pissa", "olora"):
        layer = adapted(init_lora_weights=value).base_model.model.model.layers[0].self_attn.q_proj
        assert layer.base_layer.weight.equal(before) is (value in KEEPS_THE_BASE), value
    assert set(ONCE_ONLY) <= {field.name for field in dataclasses.fields(LoraConfig)}


@guards(
    "PEFT", "keys of a saved adapter", "trained adapters are refused, or loaded without some of their weights"
)
def test_the_files_of_an_adapter(lora, tiny_model, tmp_path):
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors.torch import load_file, save_file
    from transformers import LlamaForCausalLM

    from axolotl_aot.training.fsdp2_fixes import PREFIX

    lora.save_pretrained(tmp_path)
    weights = tmp_path / "adapter_model.safetensors"
    saved = load_file(weights)
    assert all(key.startswith(PREFIX) and "default" not in key for key in saved)
    saved.pop(max(saved))  # a weight that is not in the file
    save_file(saved, weights, metadata={"format": "pt"})
    bare = LlamaForCausalLM.from_pretrained(tiny_model)
    loaded = PeftModel.from_pretrained(bare, str(tmp_path), adapter_name="other")
    found = get_peft_model_state_dict(loaded, adapter_name="other")
    assert len(found) == len(saved) + 1 and saved.keys() < found.keys()
    loaded.load_adapter(str(tmp_path), "second")
    loaded.set_adapter("second")
    loaded.delete_adapter("other")
    assert set(loaded.peft_config) == {"second"}


@guards(
    "datasets", "`new_fingerprint`", "prepared data are taken for others, or parts of a split are not found"
)
def test_fingerprints_splits_and_saved_data(tmp_path):
    from datasets import Dataset, ReadInstruction

    from axolotl_aot.data.files.sources import is_saved_dataset

    rows = Dataset.from_dict({"x": range(10)})
    mapped = rows.map(lambda row: {"y": row["x"]}, new_fingerprint="ours", load_from_cache_file=False)
    assert mapped._fingerprint == "ours" != rows._fingerprint
    (part,) = ReadInstruction.from_spec("train[:50%]").to_absolute({"train": 10})
    assert (part.splitname, part.from_ or 0, part.to) == ("train", 0, 5)
    assert not is_saved_dataset(str(tmp_path))
    rows.save_to_disk(str(tmp_path))
    assert is_saved_dataset(str(tmp_path))


@guards("datasets", "in JSON, dates become timestamps", "text of files is taken for something else")
def test_what_datasets_guesses_at(tmp_path):
    from datasets import DownloadManager, Features, Json, Value, load_dataset, load_dataset_builder

    rows = [{"day": "2024-05-01", "mixed": 5}, {"day": "2024-05-02", "mixed": "5"}]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    dataset = load_dataset("json", data_files=str(path), split="train")
    assert dataset.info.builder_name == "json"
    assert dataset.features["day"].dtype.startswith("timestamp")
    assert isinstance(dataset.features["mixed"], Json) and dataset["mixed"][:] == [5, 5]
    builder = load_dataset_builder("json", data_files=str(path))
    assert builder.name == "json"
    assert DownloadManager().download_and_extract(list(builder.config.data_files["train"])) == [str(path)]
    table = tmp_path / "rows.csv"
    table.write_text("a,b\n007,null\n")
    text = Features({"a": Value("string"), "b": Value("string")})
    options = {"features": text, "na_filter": False, "keep_default_na": False}
    assert load_dataset("csv", data_files=str(table), split="train", **options)[0] == {
        "a": "007",
        "b": "null",
    }
    assert load_dataset("csv", data_files=str(table), split="train")[0] == {"a": 7, "b": None}


@guards("tokenizers", "`char_to_token`", "prompts end at the wrong token")
def test_characters_without_a_token():
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({"red": 0, "cat": 1, "[UNK]": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.normalizer = normalizers.Replace("#", "")
    encoded = PreTrainedTokenizerFast(tokenizer_object=tokenizer)(
        ["cat", "red# cat"], add_special_tokens=False
    )
    tokens = [encoded.char_to_token(1, character) for character in range(8)]
    assert tokens == [0, 0, 0, None, None, 1, 1, 1]
    assert encoded.token_to_chars(1, 1).end == 8


@guards(
    "bitsandbytes",
    "repacks 4-bit weights",
    "a 4-bit model is scored in training mode without need, or loses gradients",
)
def test_4_bit_weights_in_evaluation_mode():
    from bitsandbytes.functional import has_avx512bf16
    from bitsandbytes.nn import Linear4bit

    layer = Linear4bit(64, 64, bias=False, compute_dtype=torch.bfloat16).to("cpu")

    def passes_gradients() -> bool:
        layer.train()
        inputs = torch.ones(2, 64, dtype=torch.bfloat16, requires_grad=True)
        layer(inputs).sum().backward()
        return inputs.grad is not None

    assert passes_gradients()
    layer.eval()
    layer(torch.ones(2, 64, dtype=torch.bfloat16))
    # other CPUs have no such kernel, and nothing to repack for
    assert passes_gradients() is not bool(has_avx512bf16())
