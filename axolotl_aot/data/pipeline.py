"""Whole data sets: loaded, mapped, counted, merged, split, and kept for the next run.

axolotl's own steps where it has them: loading, the folder of prepared data and its lock, merging,
removing duplicates, the validation split.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from axolotl.utils.chat_templates import get_chat_template
from axolotl.utils.data.lock import FileLockLoader
from axolotl.utils.data.shared import (
    create_train_validation_split,
    datasets_with_name_generator,
    generate_dataset_hash_from_config,
    get_prepared_dataset_path,
    load_dataset_with_config,
    load_preprocessed_dataset,
    merge_datasets,
    save_preprocessed_dataset,
    try_load_from_hub,
)
from axolotl.utils.data.utils import deduplicate_and_log_datasets, md5, retry_on_request_exceptions
from axolotl.utils.dict import DictDefault
from axolotl.utils.logging import get_logger
from datasets import Dataset, DatasetDict, ReadInstruction, concatenate_datasets
from datasets.exceptions import DatasetsError
from transformers import PreTrainedTokenizerBase

from axolotl_aot import __version__
from axolotl_aot.data.entry import Entry, Source
from axolotl_aot.data.mapping import FATE, RowMapper, features
from axolotl_aot.data.messages import TemplateEntry
from axolotl_aot.data.rendering import Renderer
from axolotl_aot.data.row_counts import OFTEN, Account, one_label_share, table
from axolotl_aot.data.types import parse
from axolotl_aot.errors import AOTDataError

LOG = get_logger(__name__)

RECORD = "aot_record.json"  # in the folder of prepared data
ROWS_PER_PROCESS = 2_000  # fewer are not worth starting a process for
DEFAULT_SEED = 42  # the trainer's; axolotl shuffles without any where the YAML has none
DATA_SUFFIXES = (".arrow", ".csv", ".gz", ".json", ".jsonl", ".parquet", ".txt", ".zst")
SPLITS = {"datasets": "train", "test_datasets": "test"}


@dataclass
class Pipeline:
    """The data of one run.

    rl: "aot" or "aot_unpaired". entries: of `datasets` and `test_datasets`, as the user wrote them.
    sort_size: samples that are sorted together. stratified: whether the labels are spread over them.
    """

    cfg: DictDefault
    tokenizer: PreTrainedTokenizerBase
    rl: str
    entries: dict[str, list[dict[str, Any]]]
    sort_size: int
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
        self._log_share(train)
        return train, evaluation

    @retry_on_request_exceptions(max_retries=3, delay=5)
    def prepare_evaluation(self) -> Dataset | None:
        """The evaluation set alone, if there is one; the training set is read only where it is part of it.

        Raises:
            AOTDataError: as `prepare`.
        """
        if not self.entries.get("test_datasets") or self.cfg.dataset_exact_deduplication:
            return self.prepare()[1]
        evaluation = self._locked(lambda: self._loaded("test_datasets"))
        self._require_both_labels(evaluation=evaluation)
        return evaluation

    def _locked(self, load: Callable[[], Any]) -> Any:
        """What is loaded by one process at a time."""
        loader = FileLockLoader(self.cfg)
        try:
            return loader.load(load)
        finally:
            loader.cleanup()

    def _splits(self) -> tuple[Dataset, Dataset | None]:
        train = self._loaded("datasets")
        if self.entries.get("test_datasets"):
            return train, self._loaded("test_datasets")
        if self.cfg.val_set_size:
            return create_train_validation_split(train, self.cfg, self.cfg.val_set_size)
        return train, None

    # --- Prepared data -----------------------------------------------------------------------

    def _loaded(self, key: str) -> Dataset:
        """The merged data sets under a key of the YAML, from an earlier run if they are the same."""
        stored = self.stored_under(key)
        dataset = None
        if not self._changed(key, stored):
            if self.cfg.push_dataset_to_hub:
                dataset = try_load_from_hub(self.cfg, stored, SPLITS[key])
            if dataset is None:
                dataset = load_preprocessed_dataset(self.cfg, stored)
        if dataset is None:
            return self._built(key, stored)
        if record := self._record(stored):
            self._log(key, [Account(**account) for account in record["accounts"]])
        return dataset

    def stored_under(self, key: str) -> str:
        """The name of the folder for prepared data: axolotl's own key, and all else that rows depend on."""
        entries = self._parsed[key]
        own = {
            "rl": self.rl,
            "entries": [entry.model_dump(mode="json", exclude_none=True) for entry in entries],
            "templates": [self._template(_where(key, i, entry), entry) for i, entry in enumerate(entries)],
            "excess_length_strategy": self._too_long,
            "weights": self._weights,
            "versions": [__version__, version("axolotl")],
        }
        sources = [DictDefault(entry.source()) for entry in entries]
        theirs = generate_dataset_hash_from_config(self.cfg, sources, self.tokenizer.name_or_path)
        return str(md5(theirs + json.dumps(own, sort_keys=True)))

    def _record(self, stored: str) -> dict[str, Any] | None:
        """What was written down beside prepared data; None where they come from the hub, or are not there."""
        path = get_prepared_dataset_path(self.cfg, stored) / RECORD
        return json.loads(path.read_text()) if path.exists() else None

    def _changed(self, key: str, stored: str) -> bool:
        """Whether prepared data are of other files than now; files that are gone are not needed."""
        record = self._record(stored)
        if record is None:  # none were written, or not to their end
            return get_prepared_dataset_path(self.cfg, stored).exists()
        now = self._stamps(key)
        changed = [path for path, stamp in record["sources"].items() if now.get(path, stamp) != stamp]
        if changed:
            LOG.info(f"{key}: {', '.join(changed)} has changed since it was prepared: preparing it again")
        return bool(changed)

    def _stamps(self, key: str) -> dict[str, list[int]]:
        """Size and time of each local file that the entries name, or of the data in their folders."""
        stamps = {}
        outputs = [Path(p).resolve() for p in (self.cfg.dataset_prepared_path, self.cfg.output_dir) if p]
        for entry in self._parsed[key]:
            named = [entry.data_files] if isinstance(entry.data_files, str) else entry.data_files or []
            for path in map(Path, (entry.path, *named)):
                files = [path] if path.is_file() else path.rglob("*") if path.is_dir() and not named else []
                files = [f for f in files if f.suffix in DATA_SUFFIXES or f == path]
                stats = [f.stat() for f in files if not set(outputs) & set(f.resolve().parents)]
                if stats:
                    stamps[str(path)] = [sum(s.st_size for s in stats), max(s.st_mtime_ns for s in stats)]
        return stamps

    def _log(self, key: str, accounts: list[Account]) -> None:
        LOG.info(f"{key}, by entry:\n{table(self.rl, accounts)}")

    def _built(self, key: str, stored: str) -> Dataset:
        parts, accounts = [], []
        for position in range(len(self._parsed[key])):
            part, account = self._read(key, position, stored)
            parts.append(part)
            accounts.append(account)
        self._log(key, accounts)
        if not any(len(part) for part in parts):
            raise AOTDataError(f"{key}: no row is left to use")
        dataset = merge_datasets([part for part in parts if len(part)], self.cfg)
        if not self.cfg.skip_prepare_dataset:
            if self.cfg.dataset_exact_deduplication:
                dataset, _ = deduplicate_and_log_datasets(dataset=dataset)
            folder = get_prepared_dataset_path(self.cfg, stored)
            if self.cfg.push_dataset_to_hub:
                save_preprocessed_dataset(self.cfg, dataset, stored, SPLITS[key])
            else:  # the same, without a process of its own, which takes seconds to start
                dataset.save_to_disk(str(folder), num_shards=self.cfg.num_dataset_shards_to_save)
            record = {"accounts": [asdict(account) for account in accounts], "sources": self._stamps(key)}
            (folder / RECORD).write_text(json.dumps(record))
        return dataset

    # --- One entry ---------------------------------------------------------------------------

    def _read(self, key: str, position: int, stored: str) -> tuple[Dataset, Account]:
        """The samples of an entry, and what became of its rows."""
        entries = self._parsed[key]
        entry = entries[position]
        where = _where(key, position, entry)
        template = self._template(where, entry)
        renderer = Renderer(self.tokenizer, template, self.cfg.chat_template_kwargs or {})
        try:
            dataset, first_row = self._source(entry)
            columns = dataset.column_names
            account = Account(where, rows=len(dataset))
            known = [{**e.source(), "type": e.type} for e in entries]
            own, dataset = entry.prepare(Source(dataset, self.cfg, position, known, self.tokenizer))
        except (ValueError, FileNotFoundError, DatasetsError, StopIteration) as error:
            raise AOTDataError(f"{where}: {error or 'there are no rows'}") from error
        mapper = RowMapper(
            self.rl,
            own,
            renderer,
            where,
            first_row,
            columns,
            self.cfg.sequence_len,
            self._too_long,
            self._weights,
        )
        mapped = self._mapped(dataset, mapper, md5(f"{stored}{position}"))
        kept = account.add(mapped)
        if account.first_bad:
            LOG.warning(f"{where}: {account.bad:,} bad rows left out; the first is {account.first_bad}")
        if not kept.all():
            mapped = mapped.select(np.flatnonzero(kept))
        return mapped.remove_columns(FATE), account

    def _source(self, entry: Entry) -> tuple[Dataset, int]:
        """An entry's rows as axolotl loads them, or their shard; and the number of the first."""
        if Path(entry.path).is_file() and (entry.data_files or entry.name):
            raise AOTDataError(
                "`data_files` and `name` belong to a folder or to a data set of the hub, not to a file"
            )
        sources = datasets_with_name_generator([DictDefault(entry.source())])
        parts = [self._part(source) for source in sources]
        dataset = parts[0] if len(parts) == 1 else concatenate_datasets(parts)
        if entry.shards is None:
            return dataset, 1
        index = entry.shards_idx or 0
        if index >= entry.shards:
            raise AOTDataError(f"`shards_idx: {index}` must be less than `shards: {entry.shards}`")
        small, larger = divmod(len(dataset), entry.shards)
        first_row = small * index + min(larger, index) + 1
        return dataset.shard(num_shards=entry.shards, index=index, contiguous=True), first_row

    def _part(self, source: DictDefault) -> Dataset:
        dataset = load_dataset_with_config(source, self.cfg.hf_use_auth_token, streaming=False)
        is_saved = Path(source.path).is_dir() and not source.data_files and is_saved_dataset(source.path)
        if isinstance(dataset, Dataset) and not (is_saved and source.split):
            return dataset
        # axolotl takes no notice of `split` in what was saved to the disk
        splits = dataset if isinstance(dataset, DatasetDict) else {str(dataset.split or "train"): dataset}
        sizes = {name: len(split) for name, split in splits.items()}
        try:
            ranges = ReadInstruction.from_spec(source.split or "train").to_absolute(sizes)
        except ValueError:
            raise AOTDataError(
                f"set `split:` to one of {', '.join(splits)}, or a part such as train[:100]"
            ) from None
        return concatenate_datasets(
            [
                splits[part.splitname].select(
                    range(part.from_ or 0, sizes[part.splitname] if part.to is None else part.to)
                )
                for part in ranges
            ]
        )

    def _mapped(self, dataset: Dataset, mapper: RowMapper, fingerprint: str) -> Dataset:
        processes = min(self.cfg.dataset_num_proc or 1, max(1, len(dataset) // ROWS_PER_PROCESS))
        return dataset.map(
            mapper,
            batched=True,
            with_indices=True,
            remove_columns=dataset.column_names,
            features=features(mapper.rl, mapper.weights),
            num_proc=processes if processes > 1 else None,
            load_from_cache_file=False,  # prepared data are the cache; a type of the user's may have changed
            new_fingerprint=str(md5(f"{dataset._fingerprint}{fingerprint}")),
            desc=f"Preparing {mapper.where}",
        )

    # --- What the YAML says ------------------------------------------------------------------

    @property
    def _weights(self) -> bool:
        """Whether any entry has weights: then all samples have, those of the evaluation set, too."""
        return any(entry.field_weight for entries in self._parsed.values() for entry in entries)

    @property
    def _too_long(self) -> str:
        return (self.cfg.excess_length_strategy or "drop").lower()

    def _template(self, where: str, entry: Entry) -> str | None:
        """The chat template of an entry; None where its rows are text already."""
        try:
            return self._chosen_template(entry) if isinstance(entry, TemplateEntry) else None
        except ValueError as error:
            raise AOTDataError(f"{where}: {error}") from error

    def _chosen_template(self, entry: TemplateEntry) -> str:
        """By the entry's own option, the YAML's or the tokenizer's."""
        if self.cfg.tokenizer_use_mistral_common:
            raise AOTDataError(
                f"`tokenizer_use_mistral_common: true` has no chat template, and `type: {entry.type}` needs "
                "one; remove it, and set chat_template"
            )
        jinja = entry.chat_template_jinja
        choice = entry.chat_template or ("jinja" if jinja else None)
        if choice is not None:
            return get_chat_template(choice, jinja, self.tokenizer)
        if not self.tokenizer.chat_template:
            raise AOTDataError(
                f"`type: {entry.type}`: the tokenizer has no chat template; set one, such as "
                "`chat_template: chatml`"
            )
        return self.tokenizer.get_chat_template()

    # --- Labels ------------------------------------------------------------------------------

    def _require_both_labels(self, train: Dataset | None = None, evaluation: Dataset | None = None) -> None:
        if self.rl != "aot_unpaired":
            return
        keys = "test_datasets" if self.entries.get("test_datasets") else "val_set_size"
        for name, dataset in (("datasets", train), (keys, evaluation)):
            if dataset is None:
                continue
            absent = {True, False} - set(_labels(dataset).tolist())
            if absent:
                words = " or ".join({True: "positive", False: "negative"}[label] for label in absent)
                raise AOTDataError(
                    f"{name}: no {words} answer among {len(dataset)}; rl: aot_unpaired compares the "
                    "distributions of both labels and needs answers of each"
                )

    def _log_share(self, train: Dataset) -> None:
        if self.rl != "aot_unpaired":
            return
        labels = _labels(train)
        positives, total = int(labels.sum()), len(labels)
        size = min(self.sort_size, total)
        LOG.info(
            f"{positives:,} of {total:,} answers are positive ({positives / total:.1%}): about "
            f"{size * positives / total:.1f} of the {size} that are sorted together"
        )
        share = one_label_share(positives, total - positives, size, self.stratified)
        if share > OFTEN:
            remedy = "enlarge the effective batch" + (
                "" if self.stratified else ", or set `aot_stratify: true`"
            )
            LOG.warning(
                f"about {share:.0%} of the batches that are sorted will hold answers of one label only, and "
                f"contribute no loss: {remedy}"
            )


def _where(key: str, position: int, entry: Entry) -> str:
    """An entry's name in messages."""
    return f"{key}[{position}] ({entry.path}{f', split {entry.split}' if entry.split else ''})"


def _labels(dataset: Dataset) -> np.ndarray:
    """The labels, shape (samples,). `unique` would first write a copy of a shuffled data set, all of it."""
    return dataset.with_format("numpy")["label"][:]


def is_saved_dataset(path: str) -> bool:
    """Whether a folder was written by `save_to_disk`."""
    return any((Path(path) / name).exists() for name in ("state.json", "dataset_dict.json"))
