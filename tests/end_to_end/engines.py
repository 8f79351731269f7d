"""The kinds of run that end-to-end tests go through, and the YAML keys of each engine."""

import json

QUANTIZED = ("paired", "qlora")
KINDS = [("paired", "full"), ("paired", "lora"), ("unpaired", "full"), ("unpaired", "lora")]
BOTH = PAIRED_LORA, UNPAIRED_FULL = KINDS[1:3]  # both kinds of data, and both kinds of reference

FSDP = {
    "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
    "transformer_layer_cls_to_wrap": "LlamaDecoderLayer",
    "state_dict_type": "FULL_STATE_DICT",
}
FSDP2 = {"fsdp_version": 2, "fsdp_config": {**FSDP, "reshard_after_forward": True}}


def zero(stage: int, folder, **more: int) -> dict:
    auto = ("gradient_accumulation_steps", "train_batch_size", "train_micro_batch_size_per_gpu")
    settings = {"zero_optimization": {"stage": stage, **more}, **dict.fromkeys(auto, "auto")}
    path = folder / f"zero{stage}.json"
    path.write_text(json.dumps({**settings, "gradient_clipping": "auto"}))
    return {"deepspeed": str(path)}
