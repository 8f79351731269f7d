"""The data of a run: loaded, mapped to tokens, counted, merged, split, and kept for the next run.

Where axolotl has a step of its own, it is used: the lock, merging, removing duplicates, the validation split.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from axolotl.utils.data.lock import FileLockLoader
from axolotl.utils.data.shared import merge_datasets
from axolotl.utils.data.utils import deduplicate_and_log_datasets, md5, retry_on_request_exceptions
from axolotl.utils.dict import DictDefault
from axolotl.utils.logging import get_logger
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from axolotl_aot.data.entry import Entry, Source
from axolotl_aot.data.files.fingerprint import tokenizer_fingerprint
from axolotl_aot.data.files.prepared import PreparedData, folder_name
from axolotl_aot.data.files.sources import READ_ERRORS, described, load_rows
from axolotl_aot.data.labels import log_label_share, require_both_labels
from axolotl_aot.data.mapping import PROMPT, STATUS, RowMapper, features
from axolotl_aot.data.messages import TemplateEntry
from axolotl_aot.data.rendering.renderer import Renderer
from axolotl_aot.data.rendering.templates import Template, template_of
from axolotl_aot.data.row_counts import RowCounts, table
from axolotl_aot.data.splitting import count_prompts, shared_prompts, split_by_prompt
from axolotl_aot.data.types import parse
from axolotl_aot.errors import AOTDataError
from axolotl_aot.samples import SAMPLE_TYPES

LOG = get_logger(__name__)

ROWS_PER_PROCESS = 2_000  # fewer are not worth starting a process for
DEFAULT_SEED = 42  # the trainer's; without a seed in the YAML axolotl shuffles anew each time


@dataclass
class Pipeline:
    """The data of one run.

    rl: "aot" or "aot_unpaired". entries: of `datasets` and `test_datasets`, as the user wrote them.
    samples_per_sort: samples that are sorted together. stratified: whether the labels are spread over them.
    """

    cfg: DictDefault
    tokenizer: PreTrainedTokenizerBase
    rl: str
    entries: dict[str, list[dict[str, Any]]]
    samples_per_sort: int
    stratified: bool

    def __post_init__(self) -> None:
        if self.cfg.seed is None:  # each process, and a resumed run, must shuffle alike
            self.cfg = DictDefault({**self.cfg, "seed": DEFAULT_SEED})
        self._parsed = {
            key: [parse(self.rl, raw, f"{key}[{i}]") for i, raw in enumerate(entries)]
            for key, entries in self.entries.items()
        }

    @retry_on_request_exceptions(max_retries=3, delay=5)
    def prepare(self) -> tuple[Dataset, Dataset | None]:
        """The training set and, if there is to be one, the evaluation set, tokenized.

        Raises:
            AOTDataError: rows that cannot be used, or a label that none of them has.
        """
        train, evaluation = self._locked(self._splits)
        if self.cfg.dataset_exact_deduplication:
            train, evaluation = deduplicate_and_log_datasets(dataset=train, other_dataset=evaluation)
        self._require_both_labels(train, evaluation)
        if not SAMPLE_TYPES[self.rl].paired:
            log_label_share(train, self.samples_per_sort, self.stratified)
        self._warn_of_shared_prompts(train, evaluation)
        return _for_the_trainer(train), _for_the_trainer(evaluation)

    @retry_on_request_exceptions(max_retries=3, delay=5)
    def prepare_evaluation(self) -> Dataset | None:
        """The evaluation set alone, if there is one; the training set is read only where it is part of it.

        Raises:
            AOTDataError: as `prepare`.
        """
        if not self.entries.get("test_datasets") or self.cfg.dataset_exact_deduplication:
            return self.prepare()[1]
        evaluation = self._locked(lambda: self._load("test_datasets"))
        self._require_both_labels(evaluation=evaluation)
        return _for_the_trainer(evaluation)

    def stored_under(self, key: str) -> str:
        """The name of the folder for the prepared data of `datasets` or `test_datasets`."""
        entries = self._parsed[key]
        settings = {
            "rl": self.rl,
            "templates": [
                self._template_if_any(_where(key, i, entry), entry) for i, entry in enumerate(entries)
            ],
            "excess_length_strategy": self._too_long,
            "weights": self._weights,
        }
        return folder_name(self.cfg, self._tokenizer_digest, entries, settings)

    @cached_property
    def _tokenizer_digest(self) -> str:
        return tokenizer_fingerprint(self.tokenizer)

    def _locked(self, load: Callable[[], Any]) -> Any:
        """What is loaded by one process at a time."""
        loader = FileLockLoader(self.cfg)
        try:
            return loader.load(load)
        finally:
            loader.cleanup()

    def _splits(self) -> tuple[Dataset, Dataset | None]:
        train = self._load("datasets")
        if self.entries.get("test_datasets"):
            return train, self._load("test_datasets")
        if self.cfg.val_set_size:
            return split_by_prompt(train, self.cfg.val_set_size)
        return train, None

    def _warn_of_shared_prompts(self, train: Dataset, evaluation: Dataset | None) -> None:
        """Say so where the user's own evaluation set has prompts of the training set."""
        if evaluation is not None and (shared := shared_prompts(train, evaluation)):
            LOG.warning(
                f"test_datasets: {shared:,} of its {count_prompts(evaluation):,} prompts are in `datasets`, "
                "too: what evaluation says of them is about prompts that were trained on"
            )

    def _require_both_labels(self, train: Dataset | None = None, evaluation: Dataset | None = None) -> None:
        if SAMPLE_TYPES[self.rl].paired:
            return
        evaluation_key = "test_datasets" if self.entries.get("test_datasets") else "val_set_size"
        for key, dataset in (("datasets", train), (evaluation_key, evaluation)):
            if dataset is not None:
                require_both_labels(key, dataset)

    # --- A key of the YAML -------------------------------------------------------------------

    def _load(self, key: str) -> Dataset:
        """The merged data sets under a key of the YAML, from an earlier run if they are the same."""
        prepared = PreparedData(self.cfg, key, self._parsed[key], self.stored_under(key))
        dataset = prepared.load()
        if dataset is None:
            return self._build(key, prepared)
        if row_counts := prepared.row_counts():
            self._log_counts(key, row_counts)
        return dataset

    def _build(self, key: str, prepared: PreparedData) -> Dataset:
        """The merged data sets, read from their sources and saved."""
        parts, row_counts = [], []
        for position in range(len(self._parsed[key])):
            part, counts = self._read(key, position, prepared.name)
            parts.append(part)
            row_counts.append(counts)
        self._log_counts(key, row_counts)
        if not any(len(part) for part in parts):
            raise AOTDataError(f"{key}: no row is left to use")
        dataset = merge_datasets([part for part in parts if len(part)], self.cfg)
        if not self.cfg.skip_prepare_dataset:
            if self.cfg.dataset_exact_deduplication:
                dataset, _ = deduplicate_and_log_datasets(dataset=dataset)
            prepared.save(dataset, row_counts)
        return dataset

    def _log_counts(self, key: str, row_counts: list[RowCounts]) -> None:
        LOG.info(f"{key}, by entry:\n{table(self.rl, row_counts)}")

    # --- One entry ---------------------------------------------------------------------------

    def _read(self, key: str, position: int, folder: str) -> tuple[Dataset, RowCounts]:
        """The samples of an entry, and what became of its rows. folder: of the prepared data."""
        entries = self._parsed[key]
        entry = entries[position]
        where = _where(key, position, entry)
        try:
            rows = load_rows(entry, self.cfg.hf_use_auth_token)
            counts = RowCounts(where, rows=len(rows.dataset))
            as_axolotl_knows = [{**e.source(), "type": e.type} for e in entries]
            resolved, dataset = entry.prepare(
                Source(
                    rows.dataset,
                    self.cfg,
                    position,
                    as_axolotl_knows,
                    self.tokenizer,
                    text_only=rows.text_only,
                    where=where,
                )
            )
        except READ_ERRORS as error:
            raise AOTDataError(f"{where}: {described(error)}") from error
        template = self._template(where, resolved)
        mapper = RowMapper(
            rl=self.rl,
            entry=resolved,
            renderer=Renderer(self.tokenizer, template, self.cfg.chat_template_kwargs or {}),
            where=where,
            first_row=rows.first,
            columns=rows.dataset.column_names,
            sequence_len=self.cfg.sequence_len,
            too_long=self._too_long,
            weights=self._weights,
        )
        mapped = self._map(dataset, mapper, md5(f"{folder}{position}"))
        used = counts.add(mapped)
        if counts.first_bad:
            LOG.warning(f"{where}: {counts.bad:,} bad rows left out; the first is {counts.first_bad}")
        equal = counts.equal_pairs(self.rl, type=entry.type, sequence_len=self.cfg.sequence_len)
        if equal and not used.any():
            raise AOTDataError(f"{where}: no row is left to use: {equal}")
        if equal:
            LOG.warning(f"{where}: {equal}")
        if not used.all():
            mapped = mapped.select(np.flatnonzero(used))
        return mapped.remove_columns(STATUS), counts

    def _map(self, dataset: Dataset, mapper: RowMapper, fingerprint: str) -> Dataset:
        processes = min(self.cfg.dataset_num_proc or 1, max(1, len(dataset) // ROWS_PER_PROCESS))
        mapped = dataset.map(
            mapper,
            batched=True,
            with_indices=True,
            remove_columns=dataset.column_names,
            features=features(mapper.rl, mapper.weights),
            num_proc=processes if processes > 1 else None,
            # prepared data are kept already; and a type of the user's may be other code under the same name
            load_from_cache_file=False,
            new_fingerprint=str(md5(f"{dataset._fingerprint}{fingerprint}")),
            desc=f"Preparing {mapper.where}",
        )
        return mapped.with_format(None)  # samples are what they are; rows may have been kept as JSON

    # --- What the YAML says ------------------------------------------------------------------

    @property
    def _weights(self) -> bool:
        """Whether any entry has weights: then all samples have, those of the evaluation set, too."""
        return any(entry.field_weight for entries in self._parsed.values() for entry in entries)

    @property
    def _too_long(self) -> str:
        return (self.cfg.excess_length_strategy or "drop").lower()

    def _template_if_any(self, where: str, entry: Entry) -> Template | None:
        """The chat template of an entry whose columns are not known yet, so that its rows may be text."""
        try:
            return self._template(where, entry)
        except AOTDataError:
            if isinstance(entry, TemplateEntry) and entry.may_be_text:
                return None
            raise

    def _template(self, where: str, entry: Entry) -> Template | None:
        """The chat template of an entry; None where its rows are text already."""
        try:
            return template_of(entry, self.cfg, self.tokenizer)
        except ValueError as error:
            raise AOTDataError(f"{where}: {error}") from error


def _for_the_trainer(dataset: Dataset | None) -> Dataset | None:
    """The columns that trainers read."""
    return None if dataset is None else dataset.remove_columns(PROMPT)


def _where(key: str, position: int, entry: Entry) -> str:
    """An entry's name in messages."""
    return f"{key}[{position}] ({entry.path}{f', split {entry.split}' if entry.split else ''})"
