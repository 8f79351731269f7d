"""The rows of an entry of `datasets:`, loaded as axolotl loads them: from files, folders or the hub."""

from pathlib import Path
from typing import NamedTuple

from axolotl.utils.data.shared import datasets_with_name_generator, load_dataset_with_config
from axolotl.utils.dict import DictDefault
from datasets import Dataset, DatasetDict, ReadInstruction, concatenate_datasets
from datasets.exceptions import DatasetsError

from axolotl_aot.data.entry import Entry
from axolotl_aot.data.files.reading import CSV, JSON, builder_of, file_type, has_guesses, read_csv, read_json
from axolotl_aot.errors import AOTDataError

READERS = {CSV: read_csv, JSON: read_json}
# What reading a source may raise; `AOTDataError` is a ValueError.
READ_ERRORS = (ValueError, FileNotFoundError, DatasetsError, StopIteration)


class Rows(NamedTuple):
    """Rows of a source. text_only: whether it knows nothing but text. first: the number of the first row."""

    dataset: Dataset
    text_only: bool
    first: int = 1


def load_rows(entry: Entry, auth_token: bool | None) -> Rows:
    """An entry's rows, or the shard of them that it names; they are numbered from 1.

    auth_token: axolotl's `hf_use_auth_token`.

    Raises:
        AOTDataError: options that do not fit the source, a split that it lacks, or no rows at all.
        ValueError, FileNotFoundError, DatasetsError, StopIteration: axolotl or datasets cannot load it.
    """
    if Path(entry.path).is_file() and (entry.data_files or entry.name):
        raise AOTDataError(
            "`data_files` and `name` belong to a folder or to a data set of the hub, not to a file"
        )
    # an entry with several names is several configurations of one data set
    sources = datasets_with_name_generator([DictDefault(entry.source())])
    parts = [_load_part(source, auth_token) for source in sources]
    dataset = parts[0].dataset if len(parts) == 1 else concatenate_datasets([part.dataset for part in parts])
    rows = Rows(dataset, text_only=parts[0].text_only)
    if not len(dataset):
        raise AOTDataError("there are no rows")
    return rows if entry.shards is None else _shard(rows, entry.shards, entry.shards_idx or 0)


def _shard(rows: Rows, shards: int, index: int) -> Rows:
    """One of `shards` contiguous parts."""
    if index >= shards:
        raise AOTDataError(f"`shards_idx: {index}` must be less than `shards: {shards}`")
    # the first parts, `larger` of them, have one row more
    size, larger = divmod(len(rows.dataset), shards)
    first = size * index + min(larger, index) + 1
    return rows._replace(
        dataset=rows.dataset.shard(num_shards=shards, index=index, contiguous=True), first=first
    )


def _load_part(source: DictDefault, auth_token: bool | None) -> Rows:
    path = Path(source.path)
    if path.is_file() and not path.stat().st_size:
        raise AOTDataError("the file is empty")
    is_saved = path.is_dir() and not source.data_files and is_saved_dataset(source.path)
    if not is_saved and _is_csv(source, auth_token):
        return _read_again(CSV, source, auth_token)
    dataset = load_dataset_with_config(source, auth_token, streaming=False)
    splits = dataset if isinstance(dataset, DatasetDict) else {str(dataset.split or "train"): dataset}
    if is_saved:
        # axolotl loads all of what `save_to_disk` has written, whatever `split` says
        return Rows(_select(splits, source.split or "train"), text_only=False)
    kind = next(iter(splits.values())).info.builder_name
    if kind == CSV or (kind == JSON and any(map(has_guesses, splits.values()))):
        return _read_again(kind, source, auth_token)
    dataset = dataset if isinstance(dataset, Dataset) else _select(splits, source.split or "train")
    return Rows(dataset, text_only=False)


def _read_again(kind: str, source: DictDefault, auth_token: bool | None) -> Rows:
    splits = READERS[kind](builder_of(source, auth_token))
    return Rows(_select(splits, source.split or "train"), text_only=kind == CSV)


def _is_csv(source: DictDefault, auth_token: bool | None) -> bool:
    """Whether a source is known as CSV or TSV before it is read; a data set of the hub is not."""
    if Path(source.path).is_dir() and not source.data_files:
        return builder_of(source, auth_token).name == CSV
    is_file = Path(source.path).is_file() or source.path.startswith("https://") or source.data_files
    return bool(is_file) and file_type(source) == CSV


def _select(splits: dict[str, Dataset], spec: str) -> Dataset:
    """The rows that a `split:` names, such as `test`, `train[:100]` or `train+test`."""
    sizes = {name: len(split) for name, split in splits.items()}
    try:
        ranges = ReadInstruction.from_spec(spec).to_absolute(sizes)
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


def is_saved_dataset(path: str) -> bool:
    """Whether a folder was written by `save_to_disk`."""
    return any((Path(path) / name).exists() for name in ("state.json", "dataset_dict.json"))


def described(error: Exception) -> str:
    """What to say of one of `READ_ERRORS`; of an empty source `datasets` finds no first row, or no split."""
    empty = isinstance(error, StopIteration) or "corresponds to no data" in str(error)
    return "there are no rows" if empty else str(error)
