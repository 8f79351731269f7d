"""Data sets as axolotl's commands load them."""

import pytest
from axolotl.common.datasets import load_preference_datasets


@pytest.fixture
def config(base_config, tmp_path) -> dict:
    """Unpaired; each test names its data sets. Prepared data are the test's own."""
    return {**base_config, "rl": "aot_unpaired", "dataset_prepared_path": str(tmp_path / "prepared")}


@pytest.fixture
def prepare(load, caplog):
    """The training and the evaluation set of a config; what was logged is in `prepare.log()`."""

    def prepare(config: dict):
        caplog.clear()
        cfg = load(config)
        meta = load_preference_datasets(cfg=cfg)
        return meta.train_dataset, meta.eval_dataset

    prepare.log = lambda: "\n".join(record.getMessage() for record in caplog.records)
    return prepare


@pytest.fixture
def prepare_rows(prepare, config, tmp_path):
    """The training set of rows in a JSON Lines file, in their order; options are the entry's."""
    from tests.data.entries import entry

    def prepare_rows(
        rl: str, rows: list[dict] | str, file: str = "rows.jsonl", keys: dict | None = None, **options
    ):
        path = tmp_path / file
        if isinstance(rows, str):
            path.write_text(rows)
            one = entry(path, **options)
        else:
            one = entry(path, rows, **options)
        ordered = {**config, "shuffle_merged_datasets": False, "sequence_len": 512}
        return prepare({**ordered, "rl": rl, "datasets": [one], **(keys or {})})[0]

    prepare_rows.log = prepare.log
    return prepare_rows
