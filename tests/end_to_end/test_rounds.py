"""Rounds of training, each from the last one's adapter, through axolotl's real command and its engines."""

import signal
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.adapters import make_adapter
from tests.end_to_end.engines import FSDP, FSDP2, zero
from tests.end_to_end.test_kill_and_resume import SHARDED, saving
from tests.end_to_end.test_processes import WHOLE, assert_same, train

pytestmark = pytest.mark.slow
FSDP1 = {"fsdp_version": 1, "fsdp_config": {**FSDP, "use_orig_params": True, "sync_module_states": False}}
LORA_KINDS = [("paired", "lora"), ("unpaired", "lora")]
ENGINES = {"ddp": {}, "fsdp2": FSDP2, "fsdp2, sharded files": SHARDED, "zero1": 1, "zero2": 2, "zero3": 3}


@pytest.fixture
def started(config, tiny_model, tmp_path) -> dict:
    """A round that starts from an adapter."""
    return {**config, "lora_model_dir": str(make_adapter(tmp_path / "start", tiny_model))}


def keys_of(engine: str, folder: Path) -> dict:
    keys = ENGINES[engine]
    return zero(keys, folder) if isinstance(keys, int) else keys


def weights(folder: Path) -> dict:
    return load_file(folder / "out/adapter_model.safetensors")


@pytest.mark.parametrize("more", [{}, {"precompute_ref_log_probs": True}], ids=["scored", "precomputed"])
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("config", LORA_KINDS, indirect=True, ids="-".join)
def test_every_engine_makes_the_same_round(processes, started, tmp_path, engine, more):
    more = {**more, "dataset_prepared_path": str(tmp_path / "prepared")}
    whole = train(processes, started, tmp_path / "whole", WHOLE)
    keys = keys_of(engine, tmp_path)
    run = train(processes, started, tmp_path / "engine", (2, 2, 4), **keys, **more)
    (expected,) = whole.steps
    assert (
        expected[0]["rewards/chosen"] == expected[0]["rewards/rejected"] == 0 != expected[1]["rewards/chosen"]
    )
    assert_same(run, expected)
    found, by_one = weights(run.folder), weights(whole.folder)
    assert found.keys() == by_one.keys()
    for name, tensor in by_one.items():
        assert (found[name] - tensor).norm() < 1e-3 * tensor.norm(), name


@pytest.mark.parametrize("config", LORA_KINDS, indirect=True, ids="-".join)
def test_fsdp1(processes, started, tmp_path):
    (expected,) = train(processes, started, tmp_path / "whole", WHOLE).steps
    plugins = [*started["plugins"], "tests.on_cpu.EndBeforeSaving"]  # as in test_processes
    run = train(processes, started, tmp_path / "fsdp1", (2, 4, 2), **FSDP1, plugins=plugins)
    assert run.engine["distributed_type"].endswith("FSDP")
    assert_same(run, expected)


@pytest.mark.parametrize("engine", ["ddp", "fsdp2", "fsdp2, sharded files", "zero2", "zero3"])
@pytest.mark.parametrize("config", [("paired", "lora")], indirect=True, ids="-".join)
def test_a_round_that_is_killed_and_resumed(processes, started, tmp_path, engine):
    config = {**started, **saving(started, 2), **keys_of(engine, tmp_path)}
    undisturbed = processes.train(config, tmp_path / "undisturbed", 2)
    killed = processes.run("train", config, tmp_path / "killed", 2, KILL="in a step after:6")
    assert set(killed.codes) == {-signal.SIGKILL}, killed.output
    resumed = processes.train(config, tmp_path / "killed", 2)
    assert resumed.steps == undisturbed.steps
    expected, found = weights(undisturbed.folder), weights(resumed.folder)
    assert all(tensor.equal(found[name]) for name, tensor in expected.items())
