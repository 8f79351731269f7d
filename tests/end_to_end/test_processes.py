"""One effective batch over several processes and under every engine, through axolotl's real command.

41 pairs, or 77 answers, in steps of 16: an epoch's last step holds 9 pairs, or 13 answers, so that some
processes have fewer samples than others there, and some have none.
"""

import pytest
from safetensors.torch import load_file

from tests.end_to_end.engines import BOTH, FSDP, FSDP2, KINDS, PAIRED_LORA, QUANTIZED, zero
from tests.marks import slow_except

CUTS = [(1, 1, 16), (2, 4, 2), (2, 1, 8), (4, 2, 2)]  # processes, micro-batch, accumulation steps
WHOLE = (1, 16, 1)
SAME_ON_EVERY_CUT = ("loss", "grad_norm")
# differences of log-probabilities of some 60 nats: float32 leaves about 1e-5 of them
SAME_TO_ROUNDING = ("rewards/margins", "rewards/chosen", "dominance/violation")


def train(processes, config, folder, cut: tuple[int, int, int], **more):
    world, micro_batch, accumulation = cut
    sizes = {"micro_batch_size": micro_batch, "gradient_accumulation_steps": accumulation}
    return processes.train({**config, **sizes, **more}, folder, world)


def assert_same(run, expected: list[dict]):
    """Every process has logged the global values, and they are the expected ones."""
    for steps in run.steps:
        for key in SAME_ON_EVERY_CUT + SAME_TO_ROUNDING:
            tolerance = {"rel": 1e-4} if key in SAME_ON_EVERY_CUT else {"abs": 2e-5}
            values = [step[key] for step in steps]
            assert values == pytest.approx([step[key] for step in expected], **tolerance), key
    assert all(steps == run.steps[0] for steps in run.steps[1:])


@pytest.fixture(scope="module")
def wholes() -> dict:
    """What `expected` has found, by kind."""
    return {}


@pytest.fixture
def expected(processes, config, tmp_path, wholes):
    """One process with one big micro-batch."""
    kind = (config["rl"], config.get("adapter"))
    if kind not in wholes:
        (wholes[kind],) = train(processes, config, tmp_path / "whole", WHOLE).steps
    assert len({step["loss"] for step in wholes[kind]}) == 8  # or equality would say nothing
    return wholes[kind]


@pytest.mark.parametrize("config", slow_except([PAIRED_LORA], KINDS), indirect=True, ids="-".join)
def test_loss_and_gradient_do_not_depend_on_the_cut(processes, config, expected, tmp_path):
    for cut in CUTS:
        run = train(processes, config, tmp_path / "-".join(map(str, cut)), cut)
        assert run.engine["distributed_type"].endswith("MULTI_CPU" if cut[0] > 1 else "NO")
        assert_same(run, expected)


@pytest.mark.slow
@pytest.mark.parametrize("config", slow_except([PAIRED_LORA], BOTH), indirect=True, ids="-".join)
def test_processes_that_have_room_for_different_numbers_of_graphs(processes, config, expected, tmp_path):
    for plugin, keys in (
        ("MemoryOnFirstProcess", {"gradient_checkpointing": True}),
        ("ShortOfMemoryOnSecondProcess", {}),
    ):
        plugins = [*config["plugins"], f"tests.on_cpu.{plugin}"]
        run = train(processes, config, tmp_path / plugin, (2, 1, 8), **keys, plugins=plugins)
        assert_same(run, expected)
    assert run.output.count("out of memory with graphs kept") == 1


@pytest.mark.slow
@pytest.mark.parametrize("config", BOTH, indirect=True, ids="-".join)
def test_an_entropic_coupling_with_an_anchor_and_doubted_labels(processes, config, tmp_path):
    keys = {"aot_entropy": 0.5, "aot_anchor": 0.3, "aot_penalty": "sigmoid", "aot_doubt_labels": True}
    (whole,) = train(processes, config, tmp_path / "whole", WHOLE, **keys).steps
    for name, cut, more in (("two", (2, 4, 2), {}), ("four", (4, 2, 2), {}), ("fsdp2", (2, 2, 4), FSDP2)):
        assert_same(train(processes, config, tmp_path / name, cut, **keys, **more), whole)


@pytest.mark.parametrize("config", slow_except([PAIRED_LORA], KINDS), indirect=True, ids="-".join)
def test_engines_that_shard(processes, config, expected, tmp_path):
    # three micro-batches of 2 x 2 in an epoch's last step, where there are four in the others
    cut = (2, 2, 4)
    ddp = train(processes, config, tmp_path / "ddp", cut)
    runs = {"fsdp2": train(processes, config, tmp_path / "fsdp2", cut, **FSDP2)}
    for stage in (1, 2, 3):
        folder = tmp_path / f"zero{stage}"
        runs[f"zero{stage}"] = train(processes, config, folder, cut, **zero(stage, tmp_path))
    for run in runs.values():
        assert_same(run, expected)
    engines = {name: run.engine for name, run in runs.items()}
    whole = ddp.engine["held"]
    assert engines["fsdp2"]["parameters"] == ["DTensor"]
    assert engines["fsdp2"]["held"] < 0.6 * whole
    assert engines["zero1"]["optimizer"] == engines["zero2"]["optimizer"] == "DeepSpeedZeroOptimizer"
    assert not engines["zero1"]["partitions_gradients"]
    assert engines["zero2"]["partitions_gradients"]
    assert engines["zero3"]["optimizer"] == "DeepSpeedZeroOptimizer_Stage3"
    assert engines["zero3"]["held"] < 0.6 * whole
    if "adapter" in config:  # saved under the same keys, with the same weights
        expected_adapter = load_file(ddp.folder / "out/adapter_model.safetensors")
        for run in runs.values():
            adapter = load_file(run.folder / "out/adapter_model.safetensors")
            assert adapter.keys() == expected_adapter.keys()
            for name, tensor in expected_adapter.items():
                assert (adapter[name] - tensor).norm() < 1e-3 * tensor.norm(), name


@pytest.mark.slow
@pytest.mark.parametrize("config", BOTH, indirect=True, ids="-".join)
def test_engines_that_shard_without_accumulation(processes, config, expected, tmp_path):
    for name, keys in (("fsdp2", FSDP2), ("zero3", zero(3, tmp_path))):
        assert_same(train(processes, config, tmp_path / name, (2, 8, 1), **keys), expected)


@pytest.mark.slow
@pytest.mark.parametrize("config", BOTH, indirect=True, ids="-".join)
def test_micro_batches_by_tokens(processes, config, expected, tmp_path):
    """Several micro-batches in one of Trainer's accumulation steps: gradients are exchanged once."""
    engines = {"ddp": {}, "fsdp2": FSDP2, "zero2": zero(2, tmp_path), "zero3": zero(3, tmp_path)}
    for name, keys in engines.items():
        cut = (2, 8, 1)
        run = train(processes, config, tmp_path / name, cut, **keys, aot_max_tokens_per_micro_batch=100)
        assert_same(run, expected)


@pytest.mark.slow
@pytest.mark.parametrize("config", BOTH, indirect=True, ids="-".join)
def test_the_reference_scored_once_under_every_engine(processes, config, expected, tmp_path):
    on = {"precompute_ref_log_probs": True}
    engines = {"ddp": {}, "fsdp2": FSDP2, "zero3": zero(3, tmp_path)}
    for name, keys in engines.items():
        prepared = {"dataset_prepared_path": str(tmp_path / f"prepared-{name}")}
        assert_same(train(processes, config, tmp_path / name, (2, 2, 4), **keys, **on, **prepared), expected)
    files = sorted(tmp_path.glob("prepared-*/aot_references/*"))
    assert len(files) == 3 and len({file.name for file in files}) == 1  # any of them serves all
    again = train(processes, config, tmp_path / "again", (2, 2, 4), **FSDP2, **on, **prepared)
    assert_same(again, expected)
    assert "Reference log-probabilities" not in again.output


@pytest.mark.slow
@pytest.mark.parametrize("config", [PAIRED_LORA], indirect=True, ids="-".join)
def test_fused_lora_kernels(processes, config, expected, tmp_path):
    kernels = {"lora_qkv_kernel": True, "lora_o_kernel": True, "gradient_checkpointing": True}
    # by default DeepSpeed leaves matrices of this size whole
    parts = {"stage3_param_persistence_threshold": 0}
    engines = {"fsdp2": FSDP2, "zero2": zero(2, tmp_path), "zero3": zero(3, tmp_path, **parts), "ddp": {}}
    for name, keys in engines.items():
        run = train(processes, {**config, **kernels}, tmp_path / name, (2, 2, 4), **keys)
        said = (run.folder / "output.txt").read_text()
        assert "LoRA kernels: lora_qkv_kernel, lora_o_kernel" in said
        assert_same(run, expected)


@pytest.mark.parametrize("config", [QUANTIZED], indirect=True, ids="-".join)
def test_4_bit_weights(processes, config, expected, tmp_path):
    for name, keys in (("ddp", {}), ("zero2", zero(2, tmp_path))):
        for steps in train(processes, config, tmp_path / name, (2, 4, 2), **keys).steps:
            losses = [step["loss"] for step in expected]
            assert [step["loss"] for step in steps] == pytest.approx(losses, rel=1e-3)
            # the adapter and its gradients are bf16, whose numbers lie 2^-7 apart
            norms = [step["grad_norm"] for step in expected]
            assert [step["grad_norm"] for step in steps] == pytest.approx(norms, rel=2**-6)


@pytest.mark.slow
@pytest.mark.parametrize("config", BOTH, indirect=True, ids="-".join)
def test_fsdp1(processes, config, expected, tmp_path):
    # torch crashes where it saves from FSDP1 on a CPU, with any trainer: end before that
    plugins = [*config["plugins"], "tests.on_cpu.EndBeforeSaving"]
    fsdp = {
        "auto_wrap_policy": FSDP["auto_wrap_policy"],
        "use_orig_params": True,
        "sync_module_states": False,
    }
    config = {**config, "fsdp_version": 1, "fsdp_config": {**FSDP, **fsdp}, "plugins": plugins}
    run = train(processes, config, tmp_path / "fsdp1", (2, 4, 2))
    whole = train(processes, {**config, "fsdp_config": None}, tmp_path / "ddp", (2, 4, 2)).engine
    assert run.engine["distributed_type"].endswith("FSDP")
    assert run.engine["held"] < 0.6 * whole["held"]
    assert_same(run, expected)


@pytest.mark.slow
@pytest.mark.parametrize("config", BOTH, indirect=True, ids="-".join)
def test_sharded_and_replicated_at_once(processes, config, expected, tmp_path):
    run = train(
        processes, config, tmp_path / "hsdp", (4, 2, 2), **FSDP2, dp_replicate_size=2, dp_shard_size=2
    )
    assert run.engine["parameters"] == ["DTensor"]
    assert_same(run, expected)


@pytest.mark.slow
@pytest.mark.parametrize("config", slow_except([PAIRED_LORA], KINDS[:2]), indirect=True, ids="-".join)
def test_micro_batch_scope_is_trls_aot_on_two_processes(processes, config, tmp_path):
    ours = train(processes, config, tmp_path / "ours", (2, 4, 2), aot_scope="micro_batch")
    plain = {**config, "rl": "dpo", "dpo_loss_type": ["aot"]}
    plain["plugins"] = ["tests.on_cpu.OnCPU", "tests.on_cpu.SeedBeforeTrainer"]
    trls = train(processes, plain, tmp_path / "trls", (2, 4, 2))
    for mine, theirs in zip(ours.steps, trls.steps, strict=True):
        for key in ("loss", "grad_norm", "rewards/margins", "logps/chosen"):
            steps = range(8)
            if key not in SAME_ON_EVERY_CUT:  # in an epoch's last step TRL's means count copies
                steps = [0, 1, 3, 4, 6, 7]
            expected = [theirs[step][key] for step in steps]
            assert [mine[step][key] for step in steps] == pytest.approx(expected, rel=2e-5, abs=1e-6), key
