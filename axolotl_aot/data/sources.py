"""The rows of an entry of `datasets:`, loaded as axolotl loads them: from files, folders or the hub."""

from pathlib import Path

from axolotl.utils.data.shared import datasets_with_name_generator, load_dataset_with_config
from axolotl.utils.dict import DictDefault
from datasets import Dataset, DatasetDict, ReadInstruction, concatenate_datasets

from axolotl_aot.data.entry import Entry
from axolotl_aot.errors import AOTDataError


def load_rows(entry: Entry, auth_token: bool | None) -> tuple[Dataset, int]:
    """An entry's rows, or the shard of them that it names; and the number of the first, from 1.

    auth_token: axolotl's `hf_use_auth_token`.

    Raises:
        AOTDataError: options that do not fit the source, or a split that it lacks.
        ValueError, FileNotFoundError, DatasetsError, StopIteration: axolotl or datasets cannot load it.
    """
    if Path(entry.path).is_file() and (entry.data_files or entry.name):
        raise AOTDataError(
            "`data_files` and `name` belong to a folder or to a data set of the hub, not to a file"
        )
    # an entry with several names is several configurations of one data set
    sources = datasets_with_name_generator([DictDefault(entry.source())])
    parts = [_load_part(source, auth_token) for source in sources]
    dataset = parts[0] if len(parts) == 1 else concatenate_datasets(parts)
    return (dataset, 1) if entry.shards is None else _shard(dataset, entry.shards, entry.shards_idx or 0)


def _shard(dataset: Dataset, shards: int, index: int) -> tuple[Dataset, int]:
    """One of `shards` contiguous parts, and the number of its first row."""
    if index >= shards:
        raise AOTDataError(f"`shards_idx: {index}` must be less than `shards: {shards}`")
    size, larger = divmod(len(dataset), shards)  # the first parts, `larger` of them, have one row more
    first_row = size * index + min(larger, index) + 1
    return dataset.shard(num_shards=shards, index=index, contiguous=True), first_row


def _load_part(source: DictDefault, auth_token: bool | None) -> Dataset:
    dataset = load_dataset_with_config(source, auth_token, streaming=False)
    is_saved = Path(source.path).is_dir() and not source.data_files and is_saved_dataset(source.path)
    if isinstance(dataset, Dataset) and not (is_saved and source.split):
        return dataset
    # axolotl loads all of what `save_to_disk` has written, whatever `split` says
    splits = dataset if isinstance(dataset, DatasetDict) else {str(dataset.split or "train"): dataset}
    return _select(splits, source.split or "train")


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
