"""Graphs that are kept from scoring to training: as many as fit, and never with another result."""

import shutil

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig

from axolotl_aot.training import graph_memory
from axolotl_aot.training.graph_memory import CPUMemory
from tests.adapters import make_adapter
from tests.architectures import make
from tests.conftest import LORA, QLORA
from tests.helpers import Snapshots, column
from tests.marks import slow_except


def checkpointing(reentrant: bool) -> dict:
    return {
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": reentrant},
    }


KINDS = {
    "full": {},
    "full, checkpointing": checkpointing(False),
    "lora": LORA,
    "lora, checkpointing": {**LORA, **checkpointing(False)},
    "lora, reentrant checkpointing": {**LORA, **checkpointing(True)},
    "qlora, checkpointing": {**QLORA, **checkpointing(False)},
    "reference computed before": {**LORA, "precompute_ref_log_probs": True},
    "micro-batches by tokens": {**LORA, "aot_max_tokens_per_micro_batch": 80},
    "trained head": {**LORA, "lora_modules_to_save": ["lm_head"]},
}

QUICK = ("full", "lora, checkpointing", "reference computed before", "micro-batches by tokens")


@pytest.fixture
def config(paired_config) -> dict:
    """Four micro-batches a step: a first one, and three whose graphs may be kept."""
    return {
        **paired_config,
        "micro_batch_size": 2,
        "gradient_accumulation_steps": 4,
        "max_steps": 2,
        "max_grad_norm": 1e9,
    }


class Trained:
    """A trainer that has trained, the number of graphs that each step was to keep, and its gradients."""

    def __init__(self, trainer, disturb=lambda trainer: None):
        self.trainer, self.counts, self.snapshots = trainer, [], Snapshots()
        count = trainer.kept_graphs.count

        def noted(tokens):
            self.counts.append(count(tokens))
            return self.counts[-1]

        trainer.kept_graphs.count = noted
        trainer.add_callback(self.snapshots)
        disturb(trainer)
        trainer.train()

    def assert_same(self, other: "Trained") -> None:
        """The second step, to which both come with the same weights: the first one keeps no graph."""
        for name, gradient in other.snapshots.gradients[1].items():
            assert torch.equal(self.snapshots.parameters[1][name], other.snapshots.parameters[1][name]), name
            difference = (self.snapshots.gradients[1][name] - gradient).norm()
            # bfloat16, in which QLoRA's are held, has numbers 2^-7 apart
            tolerance = 1e-6 if gradient.dtype == torch.float32 else 2**-7
            assert difference <= tolerance * gradient.norm(), name
        for key in ("loss", "grad_norm", "logps/chosen"):
            assert column(self.trainer, key) == pytest.approx(column(other.trainer, key), rel=1e-6), key
        # a difference of log-probabilities of some 60 nats
        violation = column(other.trainer, "dominance/violation")
        assert column(self.trainer, "dominance/violation") == pytest.approx(violation, abs=1e-5)


@pytest.fixture
def without_memory(monkeypatch):
    """Builds trainers in whose runs no graph fits."""

    def make(build, config, **kwargs) -> Trained:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(graph_memory, "CPU_BYTES", 0)
            trained = Trained(build(config), **kwargs)
        assert trained.counts == [0] * len(trained.counts)
        return trained

    return make


@pytest.mark.parametrize("kind", slow_except(QUICK, KINDS))
def test_the_result_does_not_depend_on_memory(build, config, kind, without_memory, tmp_path):
    config = {**config, **KINDS[kind], "dataset_prepared_path": str(tmp_path / "prepared")}
    kept = Trained(build(config))
    assert kept.counts[0] == 0 and kept.counts[1] >= 3
    kept.assert_same(without_memory(build, config))


def test_a_mixture_of_experts_with_its_router_loss(build, config, without_memory, tiny_model, tmp_path):
    folder = tmp_path / "mixtral"
    shutil.copytree(tiny_model, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    vocabulary = AutoConfig.from_pretrained(tiny_model).vocab_size
    make("mixtral", vocab_size=vocabulary).save_pretrained(folder)
    config = {**config, "base_model": str(folder), "dataset_prepared_path": str(tmp_path / "prepared")}
    kept = Trained(build(config))
    assert kept.trainer.aux_loss_enabled and kept.counts == [0, 3]
    kept.assert_same(without_memory(build, config))


def test_beside_a_reference_adapter(build, config, without_memory, tiny_model, tmp_path):
    """The model is switched to it and back before layers are computed again."""
    start = make_adapter(tmp_path / "start", tiny_model)
    config = {**config, **KINDS["lora, checkpointing"], "lora_model_dir": str(start)}
    kept = Trained(build(config))
    assert kept.counts == [0, 3]
    kept.assert_same(without_memory(build, config))


def test_no_more_is_kept_than_fits(build, config, without_memory, monkeypatch):
    """A graph of so small a model's micro-batch, of some 60 tokens, takes 0.5 MB."""
    monkeypatch.setattr(graph_memory, "CPU_BYTES", 1_200_000)
    config = {**config, "gradient_accumulation_steps": 8}
    some = Trained(build(config))
    assert some.counts[0] == 0 and 0 < some.counts[1] < 7
    some.assert_same(without_memory(build, config))


def test_noise_is_no_part_of_the_scores(build, config):
    """With dropout of attention a training pass's log-probabilities are not what the loss compares."""
    trainer = build({**config, "overrides_of_model_config": {"attention_dropout": 0.1}})
    trainer.begins_as_reference = False  # such a policy does not look like its reference
    assert Trained(trainer).counts == [0, 0]


# --- Out of memory -------------------------------------------------------------------------------

FIRST_STEP = 4  # training passes of the first step, which keeps nothing


def short_of_memory(at: int, backward: bool = False):
    """Makes the policy's forward (or backward) pass with a graph fail, once, in the first layer."""

    def disturb(trainer):
        passes = []
        layer = trainer.model.model.layers[0]

        def fail(*_):
            if torch.is_grad_enabled() or backward:
                passes.append(None)
                if len(passes) == at:
                    raise torch.OutOfMemoryError("tried to allocate more than there is")

        if backward:
            layer.register_full_backward_pre_hook(fail)
        else:
            layer.register_forward_pre_hook(fail)

    return disturb


@pytest.mark.parametrize(
    "disturb",
    {
        "the first graph": short_of_memory(FIRST_STEP + 1),
        "the third graph": short_of_memory(FIRST_STEP + 3),
        "forward beside three graphs": short_of_memory(FIRST_STEP + 4),
        "backward beside three graphs": short_of_memory(FIRST_STEP + 1, backward=True),
    }.items(),
    ids=lambda item: item[0],
)
def test_a_step_short_of_memory_is_computed_anew(build, config, without_memory, caplog, disturb):
    _, disturb = disturb
    with caplog.at_level("WARNING"):
        short = Trained(build(config), disturb=disturb)
    assert caplog.text.count("out of memory with graphs kept") == 1
    short.assert_same(without_memory(build, config))


def test_less_is_kept_after_that(build, config, monkeypatch):
    kept = Trained(build({**config, "max_steps": 3}), disturb=short_of_memory(FIRST_STEP + 1)).trainer
    step = [20] * 100_000
    after = kept.kept_graphs.count(step)
    before = Trained(build(config)).trainer.kept_graphs.count(step)
    assert after == pytest.approx(before / 2, rel=0.01)


def test_a_step_that_keeps_nothing_ends_for_want_of_memory(build, config, without_memory):
    with pytest.raises(torch.OutOfMemoryError):
        without_memory(build, config, disturb=short_of_memory(FIRST_STEP + 1))


# --- What a graph takes --------------------------------------------------------------------------


class Twice(nn.Module):
    """Saves its input and the weights, the exponential twice, and what that is multiplied with."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8, bias=False)

    def forward(self, values):
        exponential = self.linear(values).exp()
        return exponential * exponential.detach()[:]


def test_saved_tensors_are_counted_once_and_weights_not_at_all():
    module, values = Twice(), torch.randn(5, 8, requires_grad=True)
    with CPUMemory(torch.device("cpu"), 1).graph(module) as measured:
        result = module(values)
    assert measured.bytes == 2 * 5 * 8 * 4  # the input and the exponential
    result.sum().backward()


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpointed_layer_takes_its_input(reentrant):
    module, values = Twice(), torch.randn(5, 8, requires_grad=True)
    with CPUMemory(torch.device("cpu"), 1).graph(module) as measured:
        result = checkpoint(module, values, use_reentrant=reentrant)
    assert measured.bytes == 5 * 8 * 4
    result.sum().backward()


def test_a_graph_within_the_pass_is_not_counted():
    module, values = Twice(), torch.randn(5, 8, requires_grad=True)
    with CPUMemory(torch.device("cpu"), 1).graph(module) as measured:
        (gradient,) = torch.autograd.grad(module(values).sum(), values)
        result = values * gradient
    assert measured.bytes == 2 * 5 * 8 * 4  # the input and its gradient, which are multiplied
    result.sum().backward()


def test_processes_share_the_memory():
    alone, shared = (CPUMemory(torch.device("cpu"), processes).free() for processes in (1, 4))
    assert 0 < shared == pytest.approx(alone / 4, rel=0.05)
