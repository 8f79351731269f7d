"""Files whose values `datasets` would have to guess at, read as they stand.

CSV and TSV know nothing but text: guessed at, `0042` becomes a number and `null` nothing. In JSON a text that
looks like a date becomes one, and in a column of several types a text that looks like JSON is decoded.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from axolotl.utils.data.shared import get_dataset_type
from axolotl.utils.dict import DictDefault
from datasets import (
    Dataset,
    DatasetBuilder,
    DownloadManager,
    Features,
    Json,
    List,
    Value,
    load_dataset,
    load_dataset_builder,
)

from axolotl_aot.data.files.json_columns import encoded, with_json_columns

CSV, JSON = "csv", "json"
TSV_SUFFIX = ".tsv"
CSV_SUFFIXES = {".csv", TSV_SUFFIX}
# Types of a column that `datasets` makes of JSON by guessing.
GUESSED = ("timestamp", "date", "time", "duration")


def file_type(source: DictDefault) -> str:
    """What kind of file a source of one or several files is, by axolotl's rule, which does not know TSV."""
    files = source.data_files or source.path
    first = files if isinstance(files, str) else files[0]
    if not source.ds_type and not CSV_SUFFIXES.isdisjoint(Path(first).suffixes):
        return CSV
    return get_dataset_type(source)


def builder_of(source: DictDefault, auth_token: bool | None) -> DatasetBuilder:
    """What `datasets` reads the source with; its files are found, and none is read yet."""
    path, is_url = Path(source.path), source.path.startswith("https://")
    if path.is_file() or is_url:
        return load_dataset_builder(file_type(source), data_files=source.path)
    if path.is_dir() and source.data_files:
        return load_dataset_builder(file_type(source), data_files=source.data_files)
    return load_dataset_builder(
        source.path,
        source.name,
        data_files=source.data_files,
        revision=source.revision,
        token=auth_token,
    )


def read_csv(builder: DatasetBuilder) -> dict[str, Dataset]:
    """The splits of a CSV or TSV source, every cell as text; an empty cell is an empty text."""
    options = {"na_filter": False, "keep_default_na": False}
    splits = {}
    for split, files in builder.config.data_files.items():
        files = [str(file) for file in files]
        if all(TSV_SUFFIX in Path(file).suffixes for file in files):
            options["sep"] = "\t"
        # one line is enough for the names of the columns, and leaves nothing to guess at
        head = load_dataset(CSV, data_files=files, split="train", streaming=True, chunksize=1, **options)
        text = Features({name: Value("string") for name in next(iter(head))})
        splits[str(split)] = load_dataset(CSV, data_files=files, split="train", features=text, **options)
    return splits


def has_guesses(dataset: Dataset) -> bool:
    """Whether `datasets` may have read a column of a JSON source as something else than it is."""
    return any(map(_is_guessed, dataset.features.values()))


def _is_guessed(feature: Any) -> bool:
    if isinstance(feature, dict):
        return any(map(_is_guessed, feature.values()))
    if isinstance(feature, Value):
        return feature.dtype.startswith(GUESSED)
    return isinstance(feature, Json) or _is_guessed(feature.feature)


def _is_simple(feature: Any) -> bool:
    """Whether a column holds text or numbers, or lists of them."""
    return isinstance(feature, Value) or (isinstance(feature, List) and isinstance(feature.feature, Value))


def read_json(builder: DatasetBuilder) -> dict[str, Dataset]:
    """The splits of a JSON source, read value by value."""
    builder.download_and_prepare()
    features = builder.info.features
    columns = [name for name, f in features.items() if _is_guessed(f) or not _is_simple(f)]
    kept = Features({name: Value("string") if name in columns else f for name, f in features.items()})
    splits = {}
    for split, files in builder.config.data_files.items():
        local = DownloadManager().download_and_extract([str(file) for file in files])
        stamps = tuple((file, Path(file).stat().st_size, Path(file).stat().st_mtime_ns) for file in local)
        options = {"stamps": stamps, "names": tuple(kept), "columns": tuple(columns)}
        dataset = Dataset.from_generator(_rows, features=kept, gen_kwargs=options)
        splits[str(split)] = with_json_columns(dataset, columns)
    return splits


def _rows(
    stamps: tuple[tuple[str, int, int], ...], names: tuple[str, ...], columns: tuple[str, ...]
) -> Iterator[dict[str, Any]]:
    """The rows of files; size and time of the files are for `datasets`, which keeps what it has generated."""
    for path, _, _ in stamps:
        for row in _objects(Path(path)):
            yield {name: encoded(row.get(name)) if name in columns else row.get(name) for name in names}


def _objects(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file, one a line, or all in one list."""
    with path.open(encoding="utf-8-sig") as file:
        if file.read(64).lstrip().startswith("["):
            file.seek(0)
            yield from json.load(file)
            return
        file.seek(0)
        for line in file:
            if line.strip():
                yield json.loads(line)
