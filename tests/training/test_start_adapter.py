"""`lora_model_dir` in training: a round that begins with the adapter of the last one."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.conftest import LORA, QLORA
from tests.helpers import column, steps

@pytest.fixture
def first_round(run, paired_config, tmp_path) -> Path:
    run({**paired_config, **LORA, "learning_rate": 1e-2, "output_dir": str(tmp_path/"first"), "save_strategy": "no"})
    return tmp_path/"first"

def test_x(run, paired_config, first_round, tmp_path):
    import os
    for r,d,f in os.walk(first_round): print(r, f)
    print(list(load_file(first_round/"model.safetensors"))[:10])
    more = {"save_strategy": "steps", "save_steps": 2, "aot_report": True, "gradient_accumulation_steps": 2}
    t = run({**paired_config, **LORA, **more, "lora_model_dir": str(first_round)})
    print(steps(t)[0])
    print(steps(t)[-1])
    for r,d,f in os.walk(tmp_path/"out"): print(r, f)
    print(json.loads((tmp_path/"out/adapter_config.json").read_text()))
    print([n for n in load_file(tmp_path/"out/model.safetensors") if "ref" in n][:10])
