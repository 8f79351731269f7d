"""How good a model is: true rewards of the answers that it samples, and the curves of the paper's figure 1.

May import `axolotl_aot`, `benchmarks.alignment.task`; NumPy, peft, torch and transformers.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from axolotl_aot.dominance import violation
from axolotl_aot.quantiles import quantiles
from axolotl_aot.quickstart import Problem, prompt_of, token_ids
from benchmarks.alignment.task import (
    LENGTH,
    held_out_pairs,
    reward_of_text,
    split_problems,
)

WORST = 0.1  # share of the answers whose mean is told besides that of all
LEVELS = (np.arange(25) + 0.5) / 25  # of the curves


def score_adapter(base_model: Path, adapter: Path | None, seed: int) -> dict[str, Any]:
    """The scores of an adapter, or of the base model where it is None."""
    tokenizer = AutoTokenizer.from_pretrained(base_model)
    reference = AutoModelForCausalLM.from_pretrained(base_model).eval()
    policy = AutoModelForCausalLM.from_pretrained(base_model).eval()
    if adapter is not None:
        policy = PeftModel.from_pretrained(policy, adapter).eval()
    problems = split_problems()
    return {
        **{
            part: sampled(policy, reference, tokenizer, problems[part], seed)
            for part in ("validation", "test")
        },
        "pairs": distributions(policy, reference, tokenizer),
    }


@torch.no_grad()
def sampled(
    policy: PreTrainedModel,
    reference: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: list[Problem],
    seed: int,
) -> dict[str, float]:
    """Of one answer a problem, sampled at temperature 1.

    reward: the mean of true rewards, 0 where malformed; worst: the mean of the lowest `WORST` of them;
    sorted: the share that is all in order; malformed; kl: the mean of log policy / reference, in nats.
    """
    prompts = ids = token_ids(tokenizer, [prompt_of(problem) for problem in problems])
    generator = torch.Generator().manual_seed(seed)
    new, cache = prompts, None
    for _ in range(LENGTH + 1):  # the letters and the end token
        output = policy(input_ids=new, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = output.past_key_values
        new = torch.multinomial(output.logits[:, -1].softmax(-1), 1, generator=generator)
        ids = torch.cat([ids, new], dim=1)
    texts = tokenizer.batch_decode(ids[:, prompts.shape[1] :])
    found = [reward_of_text(problem, text) for problem, text in zip(problems, texts, strict=True)]
    rewards = np.sort([0.0 if value is None else value for value in found])
    gap = logprobs(policy, ids, prompts.shape[1]) - logprobs(reference, ids, prompts.shape[1])
    return {
        "reward": rewards.mean().item(),
        "worst": rewards[: round(WORST * len(rewards))].mean().item(),
        "sorted": (rewards == 1).mean().item(),
        "malformed": float(np.mean([value is None for value in found])),
        "kl": gap.mean().item(),
    }


@torch.no_grad()
def logprobs(model: PreTrainedModel, ids: torch.Tensor, prompt_length: int) -> torch.Tensor:
    """Of the tokens after the prompt, summed; nats, shape (n,)."""
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits[:, prompt_length - 1 :].log_softmax(-1)
    return logits.gather(2, ids[:, prompt_length:, None])[..., 0].sum(1).double()


def distributions(
    policy: PreTrainedModel, reference: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    """Quantile curves over held-out pairs, and how far the policy's margins miss dominance; nats."""
    rows = held_out_pairs()
    prompts = token_ids(tokenizer, [row["prompt"] for row in rows])
    scored = {}
    for side in ("chosen", "rejected"):
        answers = token_ids(tokenizer, [f"{row[side]} {tokenizer.eos_token}" for row in rows], special=False)
        ids = torch.cat([prompts, answers], dim=1)
        scored[side] = [logprobs(model, ids, prompts.shape[1]) for model in (policy, reference)]
    chosen, rejected = (policy - reference for policy, reference in scored.values())
    ratio, base_ratio = (a - b for a, b in zip(*scored.values(), strict=True))
    samples = {"chosen": chosen, "rejected": rejected, "ratio": ratio, "base_ratio": base_ratio}
    shortfall = violation(chosen, rejected)
    return {
        "accuracy": (chosen > rejected).double().mean().item(),
        "violation": shortfall.size.item(),
        "violation_rate": shortfall.rate.item(),
        "chosen_reward": chosen.mean().item(),
        "rejected_reward": rejected.mean().item(),
        "curves": {
            name: [round(value, 3) for value in quantiles(sample.numpy(), LEVELS).tolist()]
            for name, sample in samples.items()
        },
    }
