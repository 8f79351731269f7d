"""How good a model is: true rewards of the answers that it samples, and the curves of the paper's figure 1.

May import `axolotl_aot`, `benchmarks.alignment.preferences`, `summaries`, `tasks`; NumPy, peft, torch and
transformers.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from axolotl_aot.dominance import violation
from axolotl_aot.quantiles import quantiles
from axolotl_aot.quickstart.base_model import token_ids
from axolotl_aot.quickstart.task import EOS, Problem
from benchmarks.alignment.preferences import held_out_pairs
from benchmarks.alignment.summaries import summary
from benchmarks.alignment.tasks import Task

LEVELS = (np.arange(25) + 0.5) / 25  # of the curves


def score_adapter(
    task: Task, base_model: Path, adapter: Path | None, seed: int, scored: int
) -> dict[str, Any]:
    """The scores of an adapter, or of the base model where it is None.

    scored: how many problems of a part.
    """
    tokenizer = AutoTokenizer.from_pretrained(base_model)
    reference = AutoModelForCausalLM.from_pretrained(base_model).eval()
    policy = AutoModelForCausalLM.from_pretrained(base_model).eval()
    if adapter is not None:
        policy = PeftModel.from_pretrained(policy, adapter).eval()
    problems = task.split_problems()
    return {
        **{
            part: sampled(task, policy, reference, tokenizer, problems[part][:scored], seed)
            for part in ("validation", "test")
        },
        "pairs": distributions(held_out_pairs(task)[:scored], policy, reference, tokenizer),
    }


@torch.no_grad()
def sampled(
    task: Task,
    policy: PreTrainedModel,
    reference: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: list[Problem],
    seed: int,
) -> dict[str, float]:
    """The `summary` of one answer a problem, sampled at temperature 1.

    Besides, kl: the mean of log policy / reference of the tokens up to the end token and it, in nats.
    """
    prompts = ids = token_ids(tokenizer, [task.prompt_of(problem) for problem in problems])
    generator = torch.Generator().manual_seed(seed)
    new, cache = prompts, None
    for _ in range(task.max_words + 1):  # the words and the end token
        output = policy(input_ids=new, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = output.past_key_values
        new = torch.multinomial(output.logits[:, -1].softmax(-1), 1, generator=generator)
        ids = torch.cat([ids, new], dim=1)
    sampled_ids = ids[:, prompts.shape[1] :]
    texts = tokenizer.batch_decode(sampled_ids)
    ends = sampled_ids == tokenizer.eos_token_id
    before = ends.cumsum(1) - ends.long() == 0  # up to the end token and it
    gap = logprobs(policy, ids, before) - logprobs(reference, ids, before)
    return {**summary(task, problems, texts), "kl": gap.mean().item()}


@torch.no_grad()
def logprobs(model: PreTrainedModel, ids: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Of the tokens after the prompt, summed; nats, shape (n,).

    ids: (n, prompt and answer). counts: (n, answer), which tokens of the answer count; those that do not
    stand at its end, where what comes before does not see them.
    """
    begin = ids.shape[1] - counts.shape[1]
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits[:, begin - 1 :].log_softmax(-1)
    return (logits.gather(2, ids[:, begin:, None])[..., 0] * counts).sum(1).double()


def distributions(
    rows: list[dict[str, str]],
    policy: PreTrainedModel,
    reference: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> dict[str, Any]:
    """Quantile curves over held-out pairs, and how far the policy's margins miss dominance; nats."""
    prompts = token_ids(tokenizer, [row["prompt"] for row in rows])
    scored = {}
    for side in ("chosen", "rejected"):
        answers = tokenizer(
            [f"{row[side]} {EOS}" for row in rows],
            add_special_tokens=False,
            padding=True,
            padding_side="right",
            return_tensors="pt",
        )
        ids = torch.cat([prompts, answers.input_ids], dim=1)
        scored[side] = [logprobs(model, ids, answers.attention_mask) for model in (policy, reference)]
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
