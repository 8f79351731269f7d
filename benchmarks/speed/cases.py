"""What is trained: the cases of SPEED.md, and who trains them."""

from dataclasses import dataclass, field
from typing import Any

from benchmarks.speed.shapes import SMALL

TRL, LIGER = "TRL aot", "TRL dpo, Liger"
OURS, MICRO = "ours", "ours, micro_batch"
PLAIN = "ours, no LoRA kernels"
PEER = "TRL aot, peer"  # TRL as another interpreter has it
ALL_CONTENDERS = (TRL, LIGER, MICRO, OURS, PLAIN, PEER)


@dataclass(frozen=True)
class Case:
    """A training run.

    model: one of `SHAPES`, drawn at random. base_model: a folder with a model, in place of it.
    lengths: tokens of each sequence, or "real" for a distribution of them, in which prompts and completions
    have at most `longest` tokens together. prompt: the prompt's share of a sequence, for lengths in tokens.
    micro_batch: in pairs. cached: whether the reference is computed before. checkpointing: of gradients;
    None: for all but the small model. attention: transformers' name of it. liger_layers: rope, norms and MLP
    of a Llama by Liger's kernels, for every contender. steps: measured ones.
    """

    model: str = SMALL
    base_model: str | None = None
    vocabulary: int | None = None
    lengths: str = "384"
    longest: int = 512
    prompt: float = 0.5
    micro_batch: int = 4
    accumulation: int = 1
    adapter: str = "lora"
    cached: bool = False
    checkpointing: bool | None = None
    attention: str = "sdpa"
    liger_layers: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    contenders: tuple[str, ...] = (TRL, LIGER, OURS)
    steps: int = 3

    @property
    def checkpoints(self) -> bool:
        """Whether activations are computed again in the backward pass."""
        if self.checkpointing is None:
            return self.base_model is not None or self.model != SMALL
        return self.checkpointing

    @property
    def pairs(self) -> int:
        """All that are trained on; the first step is not measured."""
        return self.micro_batch * self.accumulation * (self.steps + 1)


CASES = {
    "fixed": Case(),
    "real": Case(lengths="real", accumulation=8, steps=1),
    "scope": Case(lengths="real", accumulation=16, cached=True, contenders=(MICRO, OURS), steps=2),
    "one": Case(lengths="real", cached=True, contenders=(MICRO, OURS), steps=6),
}
SWEEP = {
    "vocabulary 32,000": Case(vocabulary=32_000),
    "vocabulary 256,000": Case(vocabulary=256_000),
    "1,024 tokens": Case(lengths="1024", micro_batch=2),
    "prompt 10%": Case(prompt=0.1),
    "prompt 90%": Case(prompt=0.9),
    "micro-batch 1": Case(micro_batch=1, accumulation=4),
    "full": Case(adapter="full"),
    "qlora": Case(adapter="qlora"),
}
ALL_CASES = {**CASES, **SWEEP}
