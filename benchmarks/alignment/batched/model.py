"""A Llama with many LoRA adapters, each with its own sequences, in one forward pass.

Only what the base model of the benchmark has: no biases, as many key as query heads, plain rotary embeddings.
Tests compare it with transformers and PEFT. Imports torch and transformers.
"""

import math
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM

RANK, ALPHA = 16, 32
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
Adapter = dict[str, tuple[Tensor, Tensor]]  # by module: A (runs, rank, in) and B (runs, out, rank)
Cache = list[tuple[Tensor, Tensor]]


class Base(NamedTuple):
    """Weights by name, and what of the configuration the forward pass needs."""

    weights: dict[str, Tensor]
    layers: int
    heads: int
    eps: float
    theta: float


def load_base(folder: Path, device: torch.device | str) -> Base:
    model = AutoModelForCausalLM.from_pretrained(folder)
    config = model.config
    weights = {name: weight.detach().to(device) for name, weight in model.state_dict().items()}
    theta = config.rope_parameters["rope_theta"]
    return Base(weights, config.num_hidden_layers, config.num_attention_heads, config.rms_norm_eps, theta)


def new_adapter(base: Base, seeds: list[int]) -> Adapter:
    """As PEFT draws them: A uniform, within 1 / sqrt(inputs), and B zero; the same for the same seed."""
    device = base.weights["model.embed_tokens.weight"].device
    adapter = {}
    for number, name in enumerate(sorted(n for n in base.weights if n.split(".")[-2] in LINEAR)):
        out, inputs = base.weights[name].shape
        drawn = []
        for seed in seeds:
            generator = torch.Generator().manual_seed(1000 * seed + number)
            drawn.append((2 * torch.rand(RANK, inputs, generator=generator) - 1) / math.sqrt(inputs))
        a = torch.stack(drawn).to(device).requires_grad_()
        b = torch.zeros(len(seeds), out, RANK, device=device, requires_grad=True)
        adapter[name] = (a, b)
    return adapter


def hidden_states(
    base: Base, adapter: Adapter | None, ids: Tensor, cache: Cache | None = None, start: int = 0
) -> Tensor:
    """Of the last layer, normed.

    ids: (runs, n, length), or (1, n, length) without an adapter. cache: keys and values of the tokens before
    `start`, which are added to.
    """
    weights = base.weights
    x = weights["model.embed_tokens.weight"][ids]
    runs, n, length, width = x.shape
    size = width // base.heads
    angles = (
        torch.arange(start, start + length, device=x.device)[:, None]
        * base.theta ** (-torch.arange(0, size, 2, device=x.device) / size)
    ).repeat(1, 2)
    cos, sin = angles.cos(), angles.sin()

    def linear(x: Tensor, name: str) -> Tensor:
        out = x @ weights[name].T
        if adapter is not None:
            a, b = adapter[name]
            flat = x.flatten(1, 2)
            out = out + (ALPHA / RANK) * (flat @ a.mT @ b.mT).view(out.shape)
        return out

    def norm(x: Tensor, name: str) -> Tensor:
        return F.rms_norm(x, (width,), weights[name], base.eps)

    def rotate(x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=-1)
        return x * cos + torch.cat([-second, first], -1) * sin

    for layer in range(base.layers):
        of = f"model.layers.{layer}."
        y = norm(x, f"{of}input_layernorm.weight")
        q, k, v = (
            linear(y, f"{of}self_attn.{part}_proj.weight")
            .view(runs * n, length, base.heads, size)
            .transpose(1, 2)
            for part in "qkv"
        )
        q, k = rotate(q), rotate(k)
        if cache is not None:
            if len(cache) > layer:
                k, v = (torch.cat(pair, dim=2) for pair in zip(cache[layer], (k, v), strict=True))
                cache[layer] = (k, v)
            else:
                cache.append((k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=length > 1)
        y = y.transpose(1, 2).reshape(runs, n, length, width)
        x = x + linear(y, f"{of}self_attn.o_proj.weight")
        y = norm(x, f"{of}post_attention_layernorm.weight")
        y = F.silu(linear(y, f"{of}mlp.gate_proj.weight")) * linear(y, f"{of}mlp.up_proj.weight")
        x = x + linear(y, f"{of}mlp.down_proj.weight")
    return norm(x, "model.norm.weight")


def logits(base: Base, states: Tensor) -> Tensor:
    head = base.weights.get("lm_head.weight", base.weights["model.embed_tokens.weight"])
    return states @ head.T


def token_logprobs(base: Base, adapter: Adapter | None, ids: Tensor, prompt_length: int) -> Tensor:
    """Log-probabilities of the tokens after the prompt, (runs, n, length - prompt_length), in nats."""
    states = hidden_states(base, adapter, ids[..., :-1])[:, :, prompt_length - 1 :]
    found = logits(base, states).log_softmax(-1)
    return found.gather(-1, ids[..., prompt_length:, None])[..., 0]


@torch.no_grad()
def sample(base: Base, adapter: Adapter, prompts: Tensor, new_tokens: int, seed: int) -> Tensor:
    """One answer a prompt at temperature 1. prompts: (n, length). Returns (runs, n, new_tokens)."""
    runs = next(iter(adapter.values()))[0].shape[0]
    new, cache, start = prompts.expand(runs, -1, -1), [], 0
    generator = torch.Generator(prompts.device).manual_seed(seed)
    drawn = []
    for _ in range(new_tokens):
        states = hidden_states(base, adapter, new, cache, start)[:, :, -1]
        chances = logits(base, states).softmax(-1)
        start += new.shape[-1]
        # inverse of the distribution function; the same noise for all runs
        noise = torch.rand(chances.shape[1], 1, generator=generator, device=prompts.device)
        noise = noise.expand(runs, -1, -1).contiguous()
        total = chances.cumsum(-1)
        new = torch.searchsorted(total, noise * total[..., -1:]).clamp(max=chances.shape[-1] - 1)
        drawn.append(new)
    return torch.cat(drawn, dim=-1)
