"""Runs that are killed and resumed end with the weights of an undisturbed one, to the last bit.

41 pairs or 77 answers in steps of 8: 6 or 10 steps an epoch, the last one short.
"""

import signal

import pytest
from safetensors.torch import load_file

from tests.end_to_end.engines import FSDP2, PAIRED_LORA, zero


def saving(config, world: int) -> dict:
    return {
        "plugins": [*config["plugins"], "tests.on_cpu.KillOnOrder"],
        "micro_batch_size": 4 // world,
        "gradient_accumulation_steps": 2,
        "save_steps": 4,
        "save_strategy": "steps",
        "lr_scheduler": "cosine",
        "auto_resume_from_checkpoints": True,
    }


@pytest.mark.parametrize(
    ("config", "world", "weights"),
    [
        pytest.param(("paired", "full"), 1, "model.safetensors", marks=pytest.mark.slow),
        (("unpaired", "lora"), 1, "adapter_model.safetensors"),
        pytest.param(("paired", "lora"), 2, "adapter_model.safetensors", marks=pytest.mark.slow),
        pytest.param(("unpaired", "full"), 2, "model.safetensors", marks=pytest.mark.slow),
    ],
    indirect=["config"],
)
def test_a_run_that_is_killed_three_times(processes, config, world, weights, tmp_path):
    config = {**config, **saving(config, world), "max_steps": 15}
    undisturbed = processes.train(config, tmp_path / "undisturbed", world)
    folder = tmp_path / "killed"
    for kill, checkpoints in (
        ("in a step after:6", {4}),
        ("saving:12", {4, 8, 12}),  # resumed from 4; the last checkpoint is not complete
        ("in a step after:13", {4, 8, 12}),  # resumed from 8
    ):
        run = processes.run("train", config, folder, world, KILL=kill)
        assert set(run.codes) == {-signal.SIGKILL}, run.output  # the others are killed with the first
        assert {int(p.name.split("-")[1]) for p in (folder / "out").glob("checkpoint-*")} == checkpoints
    assert "checkpoint-12 was not written to its end" in run.output
    resumed = processes.train(config, folder, world)  # from 12
    assert resumed.steps[0] == undisturbed.steps[0]
    expected = load_file(undisturbed.folder / "out" / weights)
    actual = load_file(folder / "out" / weights)
    assert expected.keys() == actual.keys()
    for name, tensor in expected.items():
        assert tensor.equal(actual[name]), name


SHARDED = {**FSDP2, "fsdp_config": {**FSDP2["fsdp_config"], "state_dict_type": "SHARDED_STATE_DICT"}}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "engine"),
    [
        (("paired", "lora"), FSDP2),
        (("paired", "lora"), SHARDED),
        (("unpaired", "full"), FSDP2),
        (("unpaired", "lora"), 2),
        (("paired", "full"), 3),
    ],
    indirect=["config"],
    ids=["fsdp2-lora", "fsdp2-lora-sharded", "fsdp2-full", "zero2-lora", "zero3-full"],
)
def test_a_run_of_a_sharded_engine_that_is_killed(processes, config, engine, tmp_path):
    keys = engine if isinstance(engine, dict) else zero(engine, tmp_path)
    config = {**config, **saving(config, 2), **keys}
    undisturbed = processes.train(config, tmp_path / "undisturbed", 2)
    killed = processes.run("train", config, tmp_path / "killed", 2, KILL="in a step after:6")
    assert set(killed.codes) == {-signal.SIGKILL}, killed.output
    resumed = processes.train(config, tmp_path / "killed", 2)
    assert resumed.steps == undisturbed.steps


@pytest.mark.parametrize("config", [PAIRED_LORA], indirect=True, ids="-".join)
def test_ctrl_c_leaves_the_adapter_of_the_steps_that_are_done(processes, config, tmp_path):
    undisturbed = processes.train({**config, "max_steps": 2}, tmp_path / "undisturbed")
    plugins = [*config["plugins"], "tests.on_cpu.InterruptAfterTwoSteps"]
    run = processes.run("train", {**config, "plugins": plugins}, tmp_path / "interrupted")
    assert run.codes == [0] and not list((run.folder / "out").glob("log-*")), run.output
    adapter = load_file(run.folder / "out/adapter_model.safetensors")
    assert any(matrix.abs().sum() > 0 for name, matrix in adapter.items() if "lora_B" in name)
    for name, tensor in load_file(undisturbed.folder / "out/adapter_model.safetensors").items():
        assert tensor.equal(adapter[name]), name
