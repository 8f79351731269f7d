"""Tiny models of many architectures, with random weights."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

COMMON = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
}
MIXTURE = {"num_local_experts": 4, "num_experts_per_tok": 2, "output_router_logits": True}
# What is special about each: attention windows shorter than the sequences, what is done to logits.
ARCHITECTURES = {
    "llama": {},
    "llama, tied": {"tie_word_embeddings": True},
    "qwen2": {},
    "qwen3": {},
    "mistral": {"sliding_window": 5},
    "gemma2": {"sliding_window": 5, "final_logit_softcapping": 3.0},
    "gemma3_text": {"sliding_window": 5, "final_logit_softcapping": 3.0},
    "granite": {"logits_scaling": 3.0},
    "cohere": {"logit_scale": 0.3},
    "phi": {},  # a bias in the head
    "gpt2": {"n_embd": 32, "n_head": 4, "n_layer": 2},
    "mixtral": MIXTURE,
}


def make(name: str, dtype: torch.dtype = torch.float32, **more: object) -> PreTrainedModel:
    """A model whose logits are spread out, so that soft caps and scales matter."""
    kind = name.split(",")[0]
    config = AutoConfig.for_model(kind, **{**COMMON, **ARCHITECTURES.get(name, {}), **more})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.data.mul_(4)
    return model.to(dtype).eval()
