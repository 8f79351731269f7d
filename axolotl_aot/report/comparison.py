"""`axolotl aot-report`: trained models scored on one evaluation set, without training, and compared.

The YAML may be of `rl: aot` and `aot_unpaired`, or of another preference type whose rows are pairs or
answers with a label: it is read as if it were AOT's, so that all of them are scored alike.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from axolotl.cli.config import load_cfg
from axolotl.train import setup_model_and_tokenizer
from axolotl.utils.dict import DictDefault
from axolotl.utils.logging import get_logger
from datasets import Dataset
from peft import PeftConfig, PeftModel
from transformers import PreTrainedModel

from axolotl_aot import __version__, config
from axolotl_aot.checks import FOREIGN_KEYS
from axolotl_aot.dataset_hook import pipeline_of
from axolotl_aot.errors import AOTConfigError
from axolotl_aot.report.examples import examples
from axolotl_aot.report.page import write_report
from axolotl_aot.report.runs import Answers, Run
from axolotl_aot.report.statistics import report
from axolotl_aot.scoring.batches import WEIGHT
from axolotl_aot.scoring.models import load_adapter, load_whole_model
from axolotl_aot.scoring.reference_cache import Sequence, digest, sequences_of
from axolotl_aot.scoring.scorer import Precision, score_sequences

LOG = get_logger(__name__)

FOLDER = "aot-report"  # in output_dir, unless another is named
PLUGIN = "axolotl_aot.AOTPlugin"
REFERENCE = "reference"
# Other types of axolotl's, and which of AOT's has the same rows.
OTHER_TYPES = {"dpo": "aot", "ipo": "aot", "simpo": "aot", "kto": "aot_unpaired"}
# Keys of training that stand in the way of scoring in one process.
TRAINING_KEYS = (
    "accelerator_config",
    "auto_resume_from_checkpoints",
    "deepspeed",
    "early_stopping_patience",
    "fsdp",
    "fsdp_config",
    "fsdp_version",
    "load_best_model_at_end",
    "lora_model_dir",
    "metric_for_best_model",
    "precompute_ref_log_probs",
    "resume_from_checkpoint",
    "trainer_cls",
    "trl",
    "use_wandb",
)
# What an entry of `datasets` says of its own file only.
OF_ONE_FILE = ("data_files", "name", "shards", "shards_idx", "revision", "ds_type")
WEIGHTS = {
    "adapter": ("adapter_model.safetensors", "adapter_model.bin"),
    "model": (
        "model.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
    ),
}


def make_report(
    path: Path,
    *,
    adapter: Path | None = None,
    others: Mapping[str, Path] | None = None,
    data: str | None = None,
    out: Path | None = None,
) -> Path:
    """Score what a YAML has trained, and other trained models, and write the report; returns the page.

    Args:
        path: the YAML.
        adapter: what it has trained; its `lora_model_dir` or `output_dir` where None.
        others: further adapters, or whole models, by the names that the report calls them.
        data: a data set in place of the evaluation set, whose rows are as those of the YAML's.
        out: the folder to write into; `aot-report` in `output_dir` where None.

    Raises:
        AOTConfigError, AOTDataError: what is wrong with the YAML, the data or one of the models.
    """
    raw = _read(path)
    scoring = scoring_config(raw, data)
    name = raw["rl"]
    own = adapter or _trained_by(raw)
    models = _models(name, own, others or {}, named=adapter is not None)
    out = out or _output_dir(raw) / FOLDER
    cfg = _loaded(scoring, out)
    model, tokenizer, *_ = setup_model_and_tokenizer(cfg)
    dataset = pipeline_of(cfg, tokenizer).prepare_evaluation()
    if dataset is None:
        raise AOTConfigError(
            f"{path} has no evaluation set: set test_datasets or val_set_size, or name a data set with --data"
        )
    paired = config.active_rl(cfg) == "aot"
    _require_both_labels(dataset, paired)
    columns = ("chosen_ids", "rejected_ids") if paired else ("completion_ids",)
    scores = _score_all(cfg, model, models, sequences_of(dataset, columns))
    reference = scores.pop(REFERENCE)
    runs = [_run(name, dataset, found, reference, paired) for name, found in scores.items()]
    runs = _usable(runs)
    numbers = report(
        runs,
        source=_source(path, raw, data, dataset, paired),
        settings={
            "base_model": raw["base_model"],
            **{f"model: {run.name}": str(models[run.name]) for run in runs},
            "axolotl-aot": __version__,
        },
        examples={run.name: examples(run, dataset, tokenizer) for run in runs},
    )
    return write_report(out, numbers)


# --- The YAML -----------------------------------------------------------------------------------


def _read(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.safe_load(path.read_text("utf-8"))
    except yaml.YAMLError as error:
        raise AOTConfigError(f"{path} is not YAML: {error}") from None
    if not isinstance(raw, dict):
        raise AOTConfigError(f"{path} holds no keys: it must be the YAML of a training run")
    return raw


def scoring_config(raw: dict[str, Any], data: str | None = None) -> dict[str, Any]:
    """The YAML of a training run, of any type that can be scored, as one that only scores.

    Raises:
        AOTConfigError: a type without pairs and without labels; or --data without an entry to read it by.
    """
    rl = raw.get("rl")
    cfg = {key: value for key, value in raw.items() if key not in TRAINING_KEYS}
    if rl in OTHER_TYPES:
        cfg = {key: value for key, value in cfg.items() if key not in FOREIGN_KEYS}
        cfg["rl"] = OTHER_TYPES[rl]
        cfg["plugins"] = [*(cfg.get("plugins") or []), PLUGIN]
        if cfg["rl"] == "aot":
            cfg.pop("remove_unused_columns", None)
    elif rl not in config.RL_TYPES:
        raise AOTConfigError(
            f"`rl: {rl}`: a report is made of {', '.join((*config.RL_TYPES, *OTHER_TYPES))}: types with "
            "chosen and rejected answers and a reference"
        )
    if data is not None:
        entries = cfg.get("test_datasets") or cfg.get("datasets")
        if not entries:
            raise AOTConfigError(f"--data {data}: the YAML has no data set whose `type` says how to read it")
        entry = {key: value for key, value in entries[0].items() if key not in OF_ONE_FILE}
        cfg["test_datasets"] = [{**entry, "path": data, "split": "train"}]
        cfg["val_set_size"] = 0
    return cfg


def _loaded(cfg: dict[str, Any], out: Path) -> DictDefault:
    # axolotl empties output_dir's debug.log
    cfg = {**cfg, "output_dir": str(out)}
    if not cfg.get("device_map") and torch.cuda.is_available():
        cfg["device_map"] = {"": torch.cuda.current_device()}  # axolotl would spread it over all of them
    loaded = load_cfg(DictDefault(cfg))
    Path(loaded.axolotl_config_path).unlink(missing_ok=True)  # load_cfg's copy
    return loaded


# --- The models ---------------------------------------------------------------------------------


def _trained_by(raw: dict[str, Any]) -> Path:
    """Where a run's own result is; AOT's may be named by `lora_model_dir`, as for `axolotl evaluate`."""
    named = raw.get("lora_model_dir") if raw["rl"] in config.RL_TYPES else None
    return Path(named) if named else _output_dir(raw)


def _output_dir(raw: dict[str, Any]) -> Path:
    return Path(raw.get("output_dir") or "model-out")  # axolotl's default


def _models(name: str, own: Path, others: Mapping[str, Path], named: bool) -> dict[str, Path]:
    """The folders of trained models, by name; the YAML's own is left out if it has trained nothing."""
    if name in others:
        raise AOTConfigError(
            f"--compare {name}={others[name]}: the YAML's own run has this name; choose another"
        )
    if REFERENCE in others:
        raise AOTConfigError(
            f"--compare {REFERENCE}=...: that is what the base model is called; choose another"
        )
    for other, folder in others.items():
        if _kind(folder) is None:
            raise AOTConfigError(f"--compare {other}={folder}: {_nothing_in(folder)}")
    if _kind(own) is not None:
        return {name: own, **others}
    if named or not others:
        key = "--adapter" if named else "output_dir"
        raise AOTConfigError(
            f"{key} {own}: {_nothing_in(own)}; train first, or name what is trained with --adapter"
        )
    LOG.warning(f"{own} holds nothing trained; only what --compare names is in the report")
    return dict(others)


def _kind(folder: Path) -> str | None:
    return next((kind for kind, files in WEIGHTS.items() if any((folder / f).is_file() for f in files)), None)


def _nothing_in(folder: Path) -> str:
    return f"no trained adapter or model there ({' or '.join(files[0] for files in WEIGHTS.values())})"


def _score_all(
    cfg: DictDefault, model: PreTrainedModel, folders: dict[str, Path], sequences: dict[bytes, Sequence]
) -> dict[str, dict[bytes, float]]:
    """Log-probabilities under the base model and under each trained one; one pass each."""
    precision = Precision(torch.bfloat16 if cfg.bf16 else torch.float16 if cfg.fp16 else None)
    common = {
        "sequences_at_once": cfg.eval_batch_size or cfg.micro_batch_size,
        "precision": precision,
        "padding_free": config.settings(cfg).aot_padding_free,
    }
    scores = {REFERENCE: score_sequences(model, sequences, description=f"Scoring {REFERENCE}", **common)}
    adapters = {name: folder for name, folder in folders.items() if _kind(folder) == "adapter"}
    _require_no_biases(adapters, len(folders))
    for name, folder in folders.items():  # first, as an adapter changes the layers of the base model
        if name not in adapters:
            whole = load_whole_model(model, str(folder)).to(model.device)
            scores[name] = score_sequences(whole, sequences, description=f"Scoring {name}", **common)
    policy: PreTrainedModel | PeftModel = model
    for number, (name, folder) in enumerate(adapters.items()):
        _warn_of_another_base(name, folder, cfg.base_model)
        policy = load_adapter(policy, str(folder), f"number_{number}")  # PEFT refuses some names
        if number:
            policy.delete_adapter(f"number_{number - 1}")
        scores[name] = score_sequences(policy, sequences, description=f"Scoring {name}", **common)
    return {name: scores[name] for name in (REFERENCE, *folders)}


def _require_no_biases(adapters: dict[str, Path], models: int) -> None:
    for name, folder in adapters.items():
        bias = PeftConfig.from_pretrained(str(folder)).to_dict().get("bias", "none")
        if bias != "none" and models > 1:
            raise AOTConfigError(
                f"{name} ({folder}) was trained with bias: {bias}, which changes the base model that the "
                "others are scored on; make a report of it alone"
            )


def _warn_of_another_base(name: str, folder: Path, base: str) -> None:
    trained_on = PeftConfig.from_pretrained(str(folder)).base_model_name_or_path
    if trained_on and Path(trained_on).resolve() != Path(base).resolve():
        LOG.warning(f"{name} ({folder}) was trained on {trained_on}, and is scored on {base}")


# --- What the report is of ----------------------------------------------------------------------


def _require_both_labels(dataset: Dataset, paired: bool) -> None:
    good = len(dataset) if paired else sum(map(bool, dataset["label"]))
    for label, count in (("chosen", good), ("rejected", good if paired else len(dataset) - good)):
        if count < 2:
            raise AOTConfigError(
                f"the evaluation set has {count} {label} answers, and a report needs two or more of either "
                "kind; name another data set with --data"
            )


def _usable(runs: list[Run]) -> list[Run]:
    """The runs whose log-probabilities are all finite; of others a warning is left."""
    usable = []
    for run in runs:
        bad = run.chosen.not_finite + run.rejected.not_finite
        if bad:
            LOG.warning(f"{run.name} is left out: {bad} log-probabilities are NaN or infinite")
        else:
            usable.append(run)
    if not usable:
        raise AOTConfigError(
            "no model has finite log-probabilities: a run has diverged, or fp16 overflows (use bf16)"
        )
    return usable


def _run(
    name: str, dataset: Dataset, policy: dict[bytes, float], reference: dict[bytes, float], paired: bool
) -> Run:
    weights = np.array(dataset[WEIGHT], dtype=np.float64) if WEIGHT in dataset.column_names else None
    rows = np.arange(len(dataset))
    if paired:
        sides = {"chosen": ("chosen_ids", rows), "rejected": ("rejected_ids", rows)}
    else:
        label = np.array(dataset["label"], dtype=bool)
        sides = {"chosen": ("completion_ids", rows[label]), "rejected": ("completion_ids", rows[~label])}
    prompts = dataset["prompt_ids"]

    def answers(column: str, rows: np.ndarray) -> Answers:
        completions = dataset[column]
        keys = [digest(prompts[i], completions[i]) for i in rows.tolist()]
        found = (np.array([scores[key] for key in keys]) for scores in (policy, reference))
        return Answers(*found, None if weights is None else weights[rows], rows)

    return Run(name, paired, *(answers(*side) for side in sides.values()))


def _source(
    path: Path, raw: dict[str, Any], data: str | None, dataset: Dataset, paired: bool
) -> dict[str, Any]:
    samples = f"{len(dataset):,} {'pairs' if paired else 'answers'}"
    if data is not None:
        return {"kind": "data", "description": f"{data} ({samples})"}
    description = f"the evaluation set of {path} ({samples})"
    if raw["rl"] in OTHER_TYPES and not raw.get("test_datasets"):
        # axolotl drops other rows as too long before it splits
        doubt = (
            f"split off by val_set_size, which may have split off others when rl: {raw['rl']} was trained: "
            "some of these rows may have been trained on; test_datasets or --data rules that out"
        )
        LOG.warning(f"{description}: {doubt}")
        description += f", {doubt}"
    return {"kind": "evaluation set", "description": description}
