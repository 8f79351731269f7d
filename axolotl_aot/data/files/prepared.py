"""Prepared data on the disk: which folder belongs to which data, and whether what it holds can be used again.

Folder and lock are axolotl's own. Beside the data lies a record: the row counts for the log, and size, time
and a digest of the local files that were read, by which a change of them is noticed.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from axolotl.utils.data.shared import (
    generate_dataset_hash_from_config,
    get_prepared_dataset_path,
    load_preprocessed_dataset,
    save_preprocessed_dataset,
    try_load_from_hub,
)
from axolotl.utils.data.utils import md5
from axolotl.utils.dict import DictDefault
from axolotl.utils.logging import get_logger
from datasets import Dataset

from axolotl_aot import __version__
from axolotl_aot.data.entry import Entry
from axolotl_aot.data.files.fingerprint import file_digest
from axolotl_aot.data.row_counts import RowCounts

LOG = get_logger(__name__)

# The record's file, in the folder of the data. Its keys: "accounts", the row counts of each entry, and
# "sources", a `Stamp` of each local path.
RECORD = "aot_record.json"
DATA_SUFFIXES = (
    *(".arrow", ".bz2", ".csv", ".gz", ".json", ".jsonl", ".lz4", ".parquet", ".tsv", ".txt", ".xz", ".zip"),
    ".zst",
)
# Keys of the YAML by which prepared data differ, besides those that axolotl's own digest has.
ORDER = ("seed", "shuffle_merged_datasets", "shuffle_before_merging_datasets")
# what the two data sets of a run are called on the Hugging Face hub
SPLITS = {"datasets": "train", "test_datasets": "test"}


def folder_name(
    cfg: DictDefault, tokenizer_digest: str, entries: list[Entry], settings: dict[str, Any]
) -> str:
    """A digest of all that prepared data depend on.

    tokenizer_digest: by `tokenizer_fingerprint`. settings: what counts besides axolotl's own digest and the
    entries, as values that JSON can hold.
    """
    contents = {
        **settings,
        "order": [cfg[key] for key in ORDER],
        "code": [entry.code_digest() for entry in entries],
        "entries": [entry.model_dump(mode="json", exclude_none=True) for entry in entries],
        "versions": [__version__, version("axolotl")],
    }
    sources = [DictDefault(entry.source()) for entry in entries]
    axolotls = generate_dataset_hash_from_config(cfg, sources, tokenizer_digest)
    return str(md5(axolotls + json.dumps(contents, sort_keys=True)))


class Stamp(NamedTuple):
    """By what files are known again.

    size: of all, in bytes. time: the latest, in ns. digest: of what they hold.
    """

    size: int
    time: int
    digest: str

    @classmethod
    def of(cls, files: list[Path]) -> "Stamp":
        """The stamp of some files; reads them all."""
        stats = [file.stat() for file in files]
        digests = "".join(map(file_digest, files))
        return cls(sum(s.st_size for s in stats), max(s.st_mtime_ns for s in stats), str(md5(digests)))

    def is_of(self, files: list[Path]) -> bool:
        """Whether files are the same, or copies of them; they are read only where their time differs."""
        stats = [file.stat() for file in files]
        if sum(s.st_size for s in stats) != self.size:
            return False
        return max(s.st_mtime_ns for s in stats) == self.time or Stamp.of(files).digest == self.digest


@dataclass
class PreparedData:
    """The folder of one merged data set.

    key: `datasets` or `test_datasets`. entries: those of the key. name: the folder's, by `folder_name`.
    """

    cfg: DictDefault
    key: str
    entries: list[Entry]
    name: str

    def load(self) -> Dataset | None:
        """What an earlier run has left, if the local files are still those that it read."""
        if self._is_outdated():
            return None
        dataset = None
        if self.cfg.push_dataset_to_hub:
            dataset = try_load_from_hub(self.cfg, self.name, SPLITS[self.key])
        return load_preprocessed_dataset(self.cfg, self.name) if dataset is None else dataset

    def row_counts(self) -> list[RowCounts] | None:
        """What became of the rows of each entry; None for data that come from the hub."""
        record = self._record()
        return None if record is None else [RowCounts(**counts) for counts in record["accounts"]]

    def save(self, dataset: Dataset, row_counts: list[RowCounts]) -> None:
        """Keep the data for later runs, on the hub as well where the YAML asks for it."""
        if self.cfg.push_dataset_to_hub:
            save_preprocessed_dataset(self.cfg, dataset, self.name, SPLITS[self.key])
        else:  # as axolotl saves, but in this process: it would start one more, which takes seconds
            dataset.save_to_disk(str(self._folder), num_shards=self.cfg.num_dataset_shards_to_save)
        sources = {path: Stamp.of(files) for path, files in self._local_files().items()}
        record = {"accounts": [asdict(counts) for counts in row_counts], "sources": sources}
        # written last: data without a record were not saved completely
        (self._folder / RECORD).write_text(json.dumps(record))

    @property
    def _folder(self) -> Path:
        return get_prepared_dataset_path(self.cfg, self.name)

    def _record(self) -> dict[str, Any] | None:
        path = self._folder / RECORD
        return json.loads(path.read_text()) if path.exists() else None

    def _is_outdated(self) -> bool:
        """Whether a local file has changed since it was read, or the folder is not complete.

        A file that is gone counts as unchanged: the prepared data can do without it.
        """
        record = self._record()
        if record is None:
            return self._folder.exists()
        now = self._local_files()
        changed = [
            path
            for path, stamp in record["sources"].items()
            if path in now and not Stamp(*stamp).is_of(now[path])
        ]
        if changed:
            LOG.info(
                f"{self.key}: {', '.join(changed)} has changed since it was prepared: preparing it again"
            )
        return bool(changed)

    def _local_files(self) -> dict[str, list[Path]]:
        """The data files at each local path that an entry names."""
        found = {}
        for entry in self.entries:
            for path, files in _files_of(entry):
                if files := sorted(file for file in files if not self._is_output(file)):
                    found[str(path)] = files
        return found

    def _is_output(self, file: Path) -> bool:
        """Whether the run writes there itself, as where prepared data lie in the folder of their source."""
        outputs = {Path(p).resolve() for p in (self.cfg.dataset_prepared_path, self.cfg.output_dir) if p}
        return not outputs.isdisjoint(file.resolve().parents)


def _files_of(entry: Entry) -> Iterator[tuple[Path, list[Path]]]:
    """The local paths of an entry, each with its data files; of a folder, where no `data_files` are named."""
    named = [entry.data_files] if isinstance(entry.data_files, str) else entry.data_files or []
    for path in map(Path, (entry.path, *named)):
        if path.is_file():
            yield path, [path]
        elif path.is_dir() and not named:
            yield path, [file for file in path.rglob("*") if file.suffix in DATA_SUFFIXES]
