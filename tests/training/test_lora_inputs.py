"""LoRA's projections under autocast, without PEFT's copies of their inputs."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from axolotl_aot.training.lora_inputs import spare_input_copies
from tests import architectures
from tests.adapters import LINEAR
from tests.conftest import LORA


def adapted(dtype: torch.dtype, **settings) -> PeftModel:
    """A base model of a type with an adapter in float32, whose weights change it."""
    base = architectures.make("llama").to(torch.bfloat16).to(dtype)
    settings = {"r": 4, "lora_alpha": 8, "target_modules": LINEAR, "task_type": "CAUSAL_LM", **settings}
    model = get_peft_model(base, LoraConfig(**settings)).train()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            assert parameter.dtype == torch.float32
            parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def gradients(model: PeftModel, autocast: bool, seen: list[torch.dtype] | None = None) -> dict:
    """Of the log-probability of some tokens; seen: gets the types of the inputs of LoRA's first matrices."""
    handles = [
        module.register_forward_pre_hook(lambda module, args: seen.append(args[0].dtype))
        for name, module in model.named_modules()
        if name.endswith("lora_A.default") and seen is not None
    ]
    tokens = torch.randint(0, 97, (4, 40), generator=torch.Generator().manual_seed(2))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        logits = model(input_ids=tokens, use_cache=False).logits
    logits.float().log_softmax(-1)[:, :-1].gather(-1, tokens[:, 1:, None]).sum().backward()
    for handle in handles:
        handle.remove()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def error(found: dict, expected: dict) -> float:
    flat = [torch.cat([part[name].flatten() for name in expected]) for part in (found, expected)]
    return ((flat[0] - flat[1]).norm() / flat[1].norm()).item()


@pytest.mark.parametrize("settings", [{}, {"use_dora": True}], ids=["lora", "dora"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_no_bit_changes_under_autocast(settings, checkpointing):
    exact = gradients(adapted(torch.float32, **settings), autocast=False)
    plain, spared = adapted(torch.bfloat16, **settings), adapted(torch.bfloat16, **settings)
    spare_input_copies(spared)
    for model in (plain, spared):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            model.enable_input_require_grads()
    seen: list[torch.dtype] = []
    expected, found = gradients(plain, autocast=True), gradients(spared, autocast=True, seen=seen)
    assert error(found, exact) < 0.03  # bfloat16's own
    assert found.keys() == expected.keys() == exact.keys()
    for name, gradient in expected.items():
        assert gradient.equal(found[name]), name
    assert set(seen) == {torch.float32 if settings else torch.bfloat16}


def test_outside_of_autocast_the_inputs_are_cast_as_before():
    plain, spared = adapted(torch.bfloat16), adapted(torch.bfloat16)
    spare_input_copies(spared)
    gradients(spared, autocast=True)
    spared.zero_grad()
    seen: list[torch.dtype] = []
    found = gradients(spared, autocast=False, seen=seen)
    assert set(seen) == {torch.float32}
    for name, gradient in gradients(plain, autocast=False).items():
        assert gradient.equal(found[name]), name


def test_a_run_spares_them(build, paired_config):
    trainer = build({**paired_config, **LORA, "gradient_checkpointing": True, "max_steps": 1})
    projections = [m for name, m in trainer.model.named_modules() if name.endswith(".q_proj")]
    batch = next(iter(trainer.get_train_dataloader()))
    for autocast in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            trainer.scorer.scores_without_gradients(trainer.model, batch)
        assert {projection.cast_input_dtype_enabled for projection in projections} == {not autocast}
    trainer.train()
    assert {projection.cast_input_dtype_enabled for projection in projections} == {True}
