"""`axolotl aot-report`: trained models scored on one evaluation set, without training, and compared.

The YAML may be of `rl: aot` and `aot_unpaired`, or of another preference type whose rows are pairs or
answers with a label: it is read as if it were AOT's, so that all of them are scored alike.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from axolotl.train import setup_model_and_tokenizer
from axolotl.utils.logging import get_logger
from datasets import Dataset

from axolotl_aot import __version__, config
from axolotl_aot.dataset_hook import pipeline_of
from axolotl_aot.errors import AOTConfigError
from axolotl_aot.report.compared_answers import ComparedAnswers
from axolotl_aot.report.compared_models import REFERENCE, score_models, trained_models
from axolotl_aot.report.examples import examples
from axolotl_aot.report.page import write_report
from axolotl_aot.report.runs import Answers, Run
from axolotl_aot.report.statistics import report
from axolotl_aot.samples import SAMPLE_TYPES, SampleType
from axolotl_aot.scoring.batches import WEIGHT
from axolotl_aot.scoring.reference_cache import digest, sequences_of
from axolotl_aot.trained.run_config import (
    OTHER_TYPES,
    load_without_training,
    output_dir,
    read_yaml,
    trained_by,
    without_file,
    without_training,
)
from axolotl_aot.trained.weights import matmul_dtype

LOG = get_logger(__name__)

FOLDER = "aot-report"  # in output_dir, unless another is named


def make_report(
    path: Path,
    *,
    adapter: Path | None = None,
    others: Mapping[str, Path] | None = None,
    data: str | None = None,
    out: Path | None = None,
    answers: int | None = None,
) -> Path:
    """Score what a YAML has trained, and other trained models, and write the report; returns the page.

    Args:
        path: the YAML.
        adapter: what it has trained; its `lora_model_dir` or `output_dir` where None.
        others: further adapters, or whole models, by the names that the report calls them.
        data: a data set in place of the evaluation set, whose rows are as those of the YAML's.
        out: the folder to write into; `aot-report` in `output_dir` where None.
        answers: how many evaluation prompts each model answers; the YAML's `aot_report_samples` where None.

    Raises:
        AOTConfigError, AOTDataError: what is wrong with the YAML, the data or one of the models.
    """
    raw = read_yaml(path)
    scoring = scoring_config(raw, data)
    name = raw["rl"]
    out = out or output_dir(raw) / FOLDER
    cfg = load_without_training(scoring, out)  # what is wrong with the YAML comes before what it has trained
    own = adapter or trained_by(raw)
    models = trained_models(name, own, others or {}, named=adapter is not None)
    model, tokenizer, *_ = setup_model_and_tokenizer(cfg)
    dataset = pipeline_of(cfg, tokenizer).prepare_evaluation()
    if dataset is None:
        raise AOTConfigError(
            f"{path} has no evaluation set: set test_datasets or val_set_size, or name a data set with --data"
        )
    samples = SAMPLE_TYPES[config.active_rl(cfg)]
    _require_both_labels(dataset, samples)
    count = config.settings(cfg).samples_in_report(evaluates=True) if answers is None else answers
    said = ComparedAnswers(dataset, samples.columns, count, tokenizer, matmul_dtype(cfg))
    scores = score_models(cfg, model, models, sequences_of(dataset, samples.columns), said.ask)
    reference = scores.pop(REFERENCE)
    runs = [_run(name, dataset, found, reference, samples) for name, found in scores.items()]
    runs = _usable(runs)
    numbers = report(
        runs,
        source=_source(path, raw, data, dataset, samples),
        settings={
            "base_model": raw["base_model"],
            **{f"model: {run.name}": str(models[run.name]) for run in runs},
            "axolotl-aot": __version__,
        },
        examples={run.name: examples(run, dataset, tokenizer) for run in runs},
        answers=said.shown([run.name for run in runs], REFERENCE),
    )
    return write_report(out, numbers)


# --- The YAML -----------------------------------------------------------------------------------


def scoring_config(raw: dict[str, Any], data: str | None = None) -> dict[str, Any]:
    """The YAML of a training run, of any type that can be scored, as one that only scores.

    Raises:
        AOTConfigError: a type without pairs and without labels; or --data without an entry to read it by.
    """
    cfg = without_training(raw, "a report is made of")
    if data is not None:
        entries = cfg.get("test_datasets") or cfg.get("datasets")
        if not entries:
            raise AOTConfigError(f"--data {data}: the YAML has no data set whose `type` says how to read it")
        cfg["test_datasets"] = [{**without_file(entries[0]), "path": data, "split": "train"}]
        cfg["val_set_size"] = 0
    return cfg


# --- What the report is of ----------------------------------------------------------------------


def _rows_by_label(dataset: Dataset, samples: SampleType) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of the rows that hold chosen answers, and of those that hold rejected ones."""
    rows = np.arange(len(dataset))
    if samples.paired:
        return rows, rows
    label = np.array(dataset["label"], dtype=bool)
    return rows[label], rows[~label]


def _require_both_labels(dataset: Dataset, samples: SampleType) -> None:
    for label, rows in zip(("chosen", "rejected"), _rows_by_label(dataset, samples), strict=True):
        if len(rows) < 2:
            raise AOTConfigError(
                f"the evaluation set has {len(rows)} {label} answers, and a report needs two or more of "
                "either kind; name another data set with --data"
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
    name: str,
    dataset: Dataset,
    policy: dict[bytes, float],
    reference: dict[bytes, float],
    samples: SampleType,
) -> Run:
    weights = np.array(dataset[WEIGHT], dtype=np.float64) if WEIGHT in dataset.column_names else None
    prompts = dataset["prompt_ids"]

    def answers(column: str, rows: np.ndarray) -> Answers:
        completions = dataset[column]
        keys = [digest(prompts[i], completions[i]) for i in rows.tolist()]
        found = (np.array([scores[key] for key in keys]) for scores in (policy, reference))
        return Answers(*found, None if weights is None else weights[rows], rows)

    chosen, rejected = _rows_by_label(dataset, samples)
    columns = samples.columns  # a pair's two, or the one that holds the answers of both labels
    return Run(name, samples.paired, answers(columns[0], chosen), answers(columns[-1], rejected))


def _source(
    path: Path, raw: dict[str, Any], data: str | None, dataset: Dataset, samples: SampleType
) -> dict[str, Any]:
    size = f"{len(dataset):,} {samples.unit}"
    if data is not None:
        return {"kind": "data", "description": f"{data} ({size})"}
    description = f"the evaluation set of {path} ({size})"
    if raw["rl"] in OTHER_TYPES and not raw.get("test_datasets"):
        # axolotl drops other rows as too long before it splits
        doubt = (
            f"split off by val_set_size, which may have split off others when rl: {raw['rl']} was trained: "
            "some of these rows may have been trained on; test_datasets or --data rules that out"
        )
        LOG.warning(f"{description}: {doubt}")
        description += f", {doubt}"
    return {"kind": "evaluation set", "description": description}
