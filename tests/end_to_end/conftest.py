"""YAMLs of several processes, and what only they need."""

import pytest

from tests.conftest import LORA, QLORA
from tests.tiny import make_pairs, unpair, with_rows

ADAPTERS = {"full": {}, "lora": LORA, "qlora": QLORA}


@pytest.fixture
def config(request, paired_config, unpaired_config, tmp_path):
    """8 steps of a YAML, of a kind that the test names."""
    data, adapter = request.param
    rows = {"paired": make_pairs(41), "unpaired": unpair(make_pairs(41))[:-5]}
    config = {"paired": paired_config, "unpaired": unpaired_config}[data]
    config = with_rows(config, tmp_path / "rows.jsonl", rows[data])
    config["plugins"] = [*config["plugins"], "tests.on_cpu.OnCPU"]
    return {**config, **ADAPTERS[adapter], "max_steps": 8, "num_epochs": 4}
