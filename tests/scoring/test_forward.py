"""Log-probabilities and every gradient against all logits, one sequence at a time."""

import copy

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import TorchDynamoPlugin
from peft import LoraConfig, get_peft_model
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from axolotl_aot.scoring import head
from axolotl_aot.scoring.forward import attach, completion_logprobs
from axolotl_aot.scoring.layouts import binned, packed, packed_with_lengths, padded
from axolotl_aot.scoring.masked_prompts import MaskedPrompts
from axolotl_aot.scoring.shared_prompts import sharing_under
from tests.architectures import ARCHITECTURES, COMMON, make
from tests.marks import slow_except

VOCABULARY = COMMON["vocab_size"]
# Prompts and completions: odd sizes, a completion of one token, an empty prompt, nothing but one token.
SIZES = [(9, 11), (11, 1), (0, 7), (1, 17), (9, 5), (0, 1)]
SAME_PROMPT = {4: 0}  # a sequence, and the one whose prompt it has
WEIGHTS = torch.tensor([1.0, -2.0, 0.5, 1.5, -0.25, 3.0])  # of the sequences in the loss


def sequences() -> list[tuple[list[int], list[int]]]:
    generator = torch.Generator().manual_seed(1)
    tokens = iter(torch.randint(5, VOCABULARY, (200,), generator=generator).tolist())
    drawn = [([next(tokens) for _ in range(p)], [next(tokens) for _ in range(c)]) for p, c in SIZES]
    return [(drawn[SAME_PROMPT.get(i, i)][0], completion) for i, (_, completion) in enumerate(drawn)]


def batch() -> dict[str, torch.Tensor]:
    length = max(map(sum, SIZES))
    ids, attention, completion = (torch.zeros(len(SIZES), length, dtype=torch.long) for _ in range(3))
    for row, (p, c) in enumerate(sequences()):
        ids[row, : len(p) + len(c)] = torch.tensor(p + c)
        attention[row, : len(p) + len(c)] = 1
        completion[row, len(p) : len(p) + len(c)] = 1
    return {"input_ids": ids, "attention_mask": attention, "completion_mask": completion}


def one_by_one(model) -> torch.Tensor:
    """The long way, by nothing of the package."""
    sums = []
    for prompt, completion in sequences():
        ids = torch.tensor([prompt + completion])
        logits = model(input_ids=ids).logits[0]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        start = max(len(prompt), 1)
        table = torch.log_softmax(logits[start - 1 : -1], dim=-1)
        sums.append(table.gather(1, ids[0, start:, None]).sum())
    return torch.stack(sums)


def gradients(model, logprobs) -> dict[str, torch.Tensor]:
    model.zero_grad()
    (WEIGHTS * logprobs).sum().backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def distance(one: dict, other: dict) -> float:
    """Relative to the other's size, over all parameters."""
    assert set(one) == set(other)
    apart = sum((one[n].double() - other[n].double()).square().sum() for n in other)
    return float((apart / sum(other[n].double().square().sum() for n in other)).sqrt())


@pytest.fixture(params=slow_except([None, 3], [None, 1, 3, 7]), ids="chunks of {}".format)
def chunk(request, monkeypatch):
    """Tokens in a chunk; None: all of them."""
    if request.param:
        monkeypatch.setitem(head.LOGITS_BYTES, "cpu", 4 * VOCABULARY * request.param)


LAYOUTS = {
    "padded": lambda model: padded,
    "packed": lambda model: packed,
    "packed with lengths": lambda model: packed_with_lengths,
    "binned": lambda model: binned,
    "shared": lambda model: MaskedPrompts(sharing_under(model.config)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_with_and_without_padding(name, layout):
    model = make(name)
    expected = one_by_one(model)
    wanted = gradients(model, expected)
    attach(model)
    attach(model)  # once is enough, twice does no harm
    # a mask over pairs of tokens does not tell the router's loss which of them count
    options = {"output_router_logits": False} if (name, layout) == ("mixtral", "shared") else {}
    scores = completion_logprobs(model, **batch(), layout=LAYOUTS[layout](model), **options)
    assert scores.logprobs.tolist() == pytest.approx(expected.tolist(), rel=1e-5, abs=1e-5)
    found = gradients(model, scores.logprobs)
    for parameter, gradient in wanted.items():
        # a gradient that is zero but for rounding (as of a key's bias) is measured by the others
        size = max(gradient.norm(), 1e-3 * max(g.norm() for g in wanted.values()))
        assert (found[parameter] - gradient).norm() <= 1e-5 * size, parameter


TRAINED = {
    "all of it": lambda model: model,
    "all but the head": lambda model: model.get_output_embeddings().requires_grad_(False),
    "the head alone": lambda model: (
        model.requires_grad_(False),
        model.get_output_embeddings().requires_grad_(True),
    ),
}


@pytest.mark.parametrize("trained", TRAINED)
@pytest.mark.parametrize("name", ["llama", "llama, tied", "gemma2", "phi"])
def test_any_chunks_and_any_part_of_the_model_trained(name, trained, chunk):
    model = make(name)
    TRAINED[trained](model)
    expected = one_by_one(model)
    wanted = gradients(model, expected)
    attach(model)
    scores = completion_logprobs(model, **batch())
    assert scores.logprobs.tolist() == pytest.approx(expected.tolist(), rel=1e-5)
    assert distance(gradients(model, scores.logprobs), wanted) <= 1e-5


@pytest.mark.parametrize(
    "targets", ["all-linear", ["q_proj", "lm_head"], ["v_proj", "embed_tokens"]], ids=str
)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_adapters_on_the_body_the_head_and_the_embeddings(targets, layout, chunk):
    base = make("llama, tied" if "embed_tokens" in targets else "llama")
    config = LoraConfig(
        r=4, lora_alpha=16, target_modules=targets, init_lora_weights=False, task_type="CAUSAL_LM"
    )
    torch.manual_seed(1)
    model = get_peft_model(base, config).eval()
    expected = one_by_one(model)
    wanted = gradients(model, expected)
    attach(model.get_base_model())
    scores = completion_logprobs(model, **batch(), layout=LAYOUTS[layout](model))
    assert scores.logprobs.tolist() == pytest.approx(expected.tolist(), rel=1e-5)
    assert distance(gradients(model, scores.logprobs), wanted) <= 1e-5
    with model.disable_adapter(), torch.no_grad():
        reference = completion_logprobs(model, **batch(), layout=LAYOUTS[layout](model))
        assert reference.logprobs.tolist() == pytest.approx(one_by_one(model).tolist(), rel=1e-5)


@pytest.mark.parametrize("kind", ["float64", "float32"])
def test_sums_have_the_precision_of_the_model_or_float32(kind):
    model = make("llama", getattr(torch, kind))
    attach(model)
    assert completion_logprobs(model, **batch()).logprobs.dtype == getattr(torch, kind)
    half = make("llama", torch.bfloat16)
    attach(half)
    assert completion_logprobs(half, **batch()).logprobs.dtype == torch.float32


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen head", "trained head"])
@pytest.mark.parametrize("mode", ["weights", "autocast"])
@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_bfloat16_is_as_close_to_float64_as_all_logits_are(name, mode, frozen, chunk):
    exact = make(name, torch.float64)
    model = make(name, torch.bfloat16 if mode == "weights" else torch.float32)
    for one in (exact, model):
        one.get_output_embeddings().requires_grad_(not frozen)
    if mode == "weights":
        exact.load_state_dict({k: v.double() for k, v in model.state_dict().items()})
    reference = one_by_one(exact)
    wanted = gradients(exact, reference)
    attach(model)
    found = {}
    for full_logits in (True, False):
        with torch.autocast("cpu", torch.bfloat16, enabled=mode == "autocast"):
            logprobs = completion_logprobs(model, **batch(), full_logits=full_logits).logprobs
        found[full_logits] = (
            float((logprobs - reference).norm()),
            distance(gradients(model, logprobs), wanted),
        )
    for own, full_logits in zip(found[False], found[True], strict=True):
        assert 0 < own <= 1.5 * full_logits


@pytest.mark.parametrize("layout", LAYOUTS)
def test_4_bit_weights(tiny_model, layout):
    """On a CPU in training mode: in evaluation mode bitsandbytes lets no gradient through."""
    quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    base = AutoModelForCausalLM.from_pretrained(
        tiny_model, quantization_config=quantization, dtype=torch.float32, attn_implementation="sdpa"
    )
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    model = get_peft_model(base, config).train()
    expected = one_by_one(model)
    wanted = gradients(model, expected)
    attach(model.get_base_model())
    scores = completion_logprobs(model, **batch(), layout=LAYOUTS[layout](model))
    assert scores.logprobs.tolist() == pytest.approx(expected.tolist(), rel=1e-5)
    assert distance(gradients(model, scores.logprobs), wanted) <= 1e-5


@pytest.mark.parametrize("layout", ["packed", "shared"])
@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing(reentrant, layout, chunk):
    model = make("llama").train()
    wanted = gradients(model, one_by_one(model))
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    attach(model)
    logprobs = completion_logprobs(model, **batch(), layout=LAYOUTS[layout](model)).logprobs
    assert distance(gradients(model, logprobs), wanted) <= 1e-5


@pytest.mark.parametrize("frozen", [True, False])
def test_activations_kept_elsewhere(frozen, chunk):
    """As activation offloading does, by hooks on all that autograd saves."""
    model = make("llama")
    model.get_output_embeddings().requires_grad_(not frozen)
    wanted = gradients(model, one_by_one(model))
    attach(model)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x.numpy().copy(), torch.from_numpy):
        logprobs = completion_logprobs(model, **batch()).logprobs
    assert distance(gradients(model, logprobs), wanted) <= 1e-5


def test_a_router_keeps_its_loss():
    model = make("mixtral")
    attention = batch()["attention_mask"]
    expected = model(
        input_ids=batch()["input_ids"], attention_mask=attention, output_router_logits=True
    ).aux_loss
    attach(model)
    for layout in (padded, packed):
        scores = completion_logprobs(model, **batch(), layout=layout, output_router_logits=True)
        assert scores.aux_loss.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.fixture(params=[False, True], ids=["", "torch_compile"])
def accelerator(request):
    """In bfloat16; other tests' trainers make a state of their own."""
    AcceleratorState._reset_state(reset_partial_state=True)
    plugin = TorchDynamoPlugin(backend="eager") if request.param else None
    yield Accelerator(cpu=True, mixed_precision="bf16", dynamo_plugin=plugin)
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
def test_what_accelerate_wraps_around_a_forward_pass(accelerator, adapter):
    """autocast, a cast of the output, and torch.compile; on the causal LM itself or around PEFT's model."""
    model, twin = make("llama"), make("llama")
    if adapter:
        config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
        torch.manual_seed(1)
        model = get_peft_model(model, config).eval()
        torch.manual_seed(1)
        twin = get_peft_model(twin, config).eval()
    for one in (model, twin):
        attach(one.get_base_model() if adapter else one)
    with torch.autocast("cpu", torch.bfloat16):
        expected = completion_logprobs(twin, **batch())
    wanted = gradients(twin, expected.logprobs)
    wrapped = accelerator.prepare_model(model)
    scores = completion_logprobs(wrapped, **batch())
    assert scores.logprobs.tolist() == pytest.approx(expected.logprobs.tolist(), rel=1e-6)
    assert distance(gradients(model, scores.logprobs), wanted) <= 1e-5
    if adapter:
        with torch.no_grad():
            kept = completion_logprobs(wrapped, **batch(), save_grad=True)
        again = completion_logprobs(wrapped, **batch(), cached_scores=kept.tokens).logprobs
        assert distance(gradients(model, again), wanted) <= 1e-5


@pytest.fixture
def one_process_group(tmp_path):
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    yield dist.device_mesh.init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen head", "trained head"])
@pytest.mark.parametrize("full_logits", [False, True])
def test_fsdp2_in_mixed_precision_rounds_no_log_probability(one_process_group, full_logits, frozen):
    """Its policy, as accelerate sets it, casts what a model returns."""
    alone, sharded = (make("llama", torch.bfloat16), make("llama", torch.float32))
    sharded.load_state_dict({k: v.float() for k, v in alone.state_dict().items()})
    for model in (alone, sharded):
        model.get_output_embeddings().requires_grad_(not frozen)
        attach(model)
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.bfloat16, torch.bfloat16)
    for module in (*sharded.model.layers, sharded):
        fully_shard(module, mesh=one_process_group, mp_policy=policy, reshard_after_forward=True)
    expected = completion_logprobs(alone, **batch(), full_logits=full_logits)
    scores = completion_logprobs(sharded, **batch(), full_logits=full_logits)
    assert scores.logprobs.dtype == torch.float32
    assert scores.logprobs.tolist() == pytest.approx(expected.logprobs.tolist(), rel=5e-3)
    # of bfloat16 there are no more than 256 between two powers of 2
    assert (scores.tokens.logprobs.bfloat16() != scores.tokens.logprobs).float().mean() > 0.9
    wanted = gradients(alone, expected.logprobs)
    found = {n: g.full_tensor() for n, g in gradients(sharded, scores.logprobs).items()}
    assert distance(found, wanted) <= 0.02


# --- Scores that are kept --------------------------------------------------------------------


@pytest.mark.parametrize("layouts", [("packed", "packed"), ("padded", "binned"), ("shared", "packed")])
def test_what_scoring_found_is_as_good_as_the_head(layouts, chunk):
    model = make("gemma2", sliding_window=32)
    model.get_output_embeddings().requires_grad_(False)
    wanted = gradients(model, one_by_one(model))
    attach(model)
    with torch.no_grad():
        scored = completion_logprobs(model, **batch(), layout=LAYOUTS[layouts[0]](model), save_grad=True)
    calls = []
    model.get_output_embeddings().register_forward_pre_hook(lambda module, args: calls.append(args[0].shape))
    known = scored.tokens.of(scored.lengths, list(range(len(SIZES))))
    scores = completion_logprobs(model, **batch(), layout=LAYOUTS[layouts[1]](model), cached_scores=known)
    assert torch.equal(scores.logprobs, scored.logprobs)
    assert distance(gradients(model, scores.logprobs), wanted) <= 1e-5


def test_a_trained_head_keeps_nothing():
    model = make("llama")
    attach(model)
    with torch.no_grad():
        assert completion_logprobs(model, **batch(), save_grad=True).tokens.gradient is None


# --- Memory ----------------------------------------------------------------------------------


class Largest(TorchDispatchMode):
    """The most elements of one tensor that any operation has made, its vocabulary last."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.ndim and result.shape[-1] == VOCABULARY:
            self.elements = max(self.elements, result.numel())
        return result


@pytest.mark.parametrize("frozen", [True, False])
def test_no_more_than_a_chunk_of_logits_exists(frozen, monkeypatch):
    model = make("gemma2")
    model.get_output_embeddings().requires_grad_(not frozen)
    attach(model)
    monkeypatch.setitem(head.LOGITS_BYTES, "cpu", 4 * VOCABULARY * 5)
    largest = {}
    for full_logits in (False, True):
        with Largest() as mode:
            (
                WEIGHTS * completion_logprobs(model, **batch(), full_logits=full_logits).logprobs
            ).sum().backward()
        largest[full_logits] = mode.elements
    assert largest[False] <= max(5 * VOCABULARY, 32 * VOCABULARY)  # the weights' own gradient has 32 rows
    assert largest[True] == len(SIZES) * max(map(sum, SIZES)) * VOCABULARY


def test_the_model_is_what_it_was_for_everybody_else(tiny_model):
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    twin = copy.deepcopy(model)
    attach(model)
    ids = batch()["input_ids"][:1]
    assert torch.equal(model(ids).logits, twin(ids).logits)
    completion_logprobs(model, **batch())
    assert torch.equal(model(ids, labels=ids).loss, twin(ids, labels=ids).loss)
    assert model.state_dict().keys() == twin.state_dict().keys()
    assert "forward" not in model.lm_head.__dict__
    assert [type(m) for m in model.children()] == [type(m) for m in twin.children()]
    assert torch.equal(model.generate(ids, max_new_tokens=3), twin.generate(ids, max_new_tokens=3))


def test_attaching_twice_is_attaching_once():
    model = make("llama")
    expected = one_by_one(model)
    attach(model)
    forward = model.forward
    attach(model)
    assert model.forward is forward
    other = make("llama")  # another model of the same class is not attached by that
    with pytest.raises(AttributeError, match="uncast"):
        completion_logprobs(other, **batch())
    attach(other)
    for attached in (model, other):
        torch.testing.assert_close(completion_logprobs(attached, **batch()).logprobs, expected)
