"""Files of adapters as PEFT saves them, and as axolotl saves them under FSDP2."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from axolotl_aot.scoring.models import load_adapter
from axolotl_aot.training.fsdp2_fixes import mend_saved


@pytest.fixture
def base(tiny_model):
    return AutoModelForCausalLM.from_pretrained(tiny_model)


@pytest.fixture
def saved(base, tmp_path):
    """A LoRA adapter whose matrices are not zero, saved by PEFT."""
    model = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"]), "default")
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_()
    model.save_pretrained(tmp_path)
    return tmp_path, model


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(5, 15)[None]).logits


def test_keys_without_pefts_prefix_are_refused_and_mended(saved, tiny_model):
    folder, model = saved
    expected = logits(model)
    weights = folder / "adapter_model.safetensors"
    before = load_file(weights)
    save_file({key.removeprefix("base_model.model."): t for key, t in before.items()}, weights)
    with pytest.raises(ValueError, match=r"adapter_model.safetensors lacks 8 of the adapter's weights"):
        load_adapter(AutoModelForCausalLM.from_pretrained(tiny_model), str(folder))
    for _ in range(2):  # the second time there is nothing to mend
        mend_saved(folder)
        after = load_file(weights)
        assert after.keys() == before.keys()
        assert all(tensor.equal(before[key]) for key, tensor in after.items())
    loaded = load_adapter(AutoModelForCausalLM.from_pretrained(tiny_model), str(folder))
    assert torch.allclose(logits(loaded), expected, atol=1e-6)


def test_nothing_saved_is_nothing_to_mend(tmp_path):
    mend_saved(tmp_path)
    assert not list(tmp_path.iterdir())
