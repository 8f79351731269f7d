"""The small base model: its tokenizer, its training, and how often it answers right. Imports `task`."""

from collections import Counter
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from peft import PeftModel
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from axolotl_aot.quickstart.task import (
    EOS,
    KINDS,
    LENGTH,
    LETTERS,
    SEED,
    Problem,
    kind_of,
    prompt_of,
    right_answer,
    split_problems,
    wrong_answer,
)

BASE_STEPS, BASE_BATCH = 400, 64  # a batch: so many problems, each with both answers
PAD, BOS = "<pad>", "<s>"

Progress = Callable[[Iterable[int]], Iterable[int]]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word; a sequence begins with the BOS token."""
    words = [PAD, BOS, EOS, "<unk>", "sort", ":", *LETTERS]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, words.index(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD, unk_token="<unk>"
    )


def make_base_model(
    tokenizer: PreTrainedTokenizerBase, steps: int = BASE_STEPS, progress: Progress = iter
) -> LlamaForCausalLM:
    """A 3-layer Llama that answers upwards and downwards equally often."""
    model = new_model(tokenizer)
    sequences, prompt_length = _both_answers(tokenizer, split_problems()[0])
    generator = torch.Generator().manual_seed(SEED)

    def draw() -> tuple[Tensor, int]:
        chosen = torch.randint(len(sequences), (BASE_BATCH,), generator=generator)
        return sequences[chosen].flatten(0, 1), prompt_length

    fit(model, draw, steps, progress)
    return model.eval()


def new_model(tokenizer: PreTrainedTokenizerBase) -> LlamaForCausalLM:
    """A small Llama with random weights, the same each time."""
    torch.manual_seed(SEED)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=64,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def fit(
    model: PreTrainedModel, draw: Callable[[], tuple[Tensor, int]], steps: int, progress: Progress = iter
) -> None:
    """Train a model on answers. draw: the next batch's token ids (n, length), and the prompts' length."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps)
    for _ in progress(range(steps)):
        ids, prompt_length = draw()
        logits = model(ids[:, :-1], use_cache=False).logits[:, prompt_length - 1 :]
        loss = F.cross_entropy(logits.flatten(0, 1), ids[:, prompt_length:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()


def _both_answers(tokenizer: PreTrainedTokenizerBase, problems: list[Problem]) -> tuple[Tensor, int]:
    """Token ids of every problem with each of its answers, (problems, 2, length), and the prompts' length."""
    prompts = token_ids(tokenizer, [prompt_of(p) for p in problems])
    both = [
        torch.cat([prompts, token_ids(tokenizer, [f"{answer(p)} {EOS}" for p in problems], False)], 1)
        for answer in (right_answer, wrong_answer)
    ]
    return torch.stack(both, dim=1), prompts.shape[1]


def token_ids(tokenizer: PreTrainedTokenizerBase, texts: list[str], special: bool = True) -> Tensor:
    """Of texts of equal length, (texts, length); `special`: with the BOS token."""
    return tokenizer(texts, add_special_tokens=special, return_tensors="pt").input_ids


@torch.no_grad()
def answer_rates(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: list[Problem],
    seed: int = SEED,
) -> dict[str, float]:
    """Share of each of `KINDS` among answers sampled at temperature 1, one a problem."""
    ids = token_ids(tokenizer, [prompt_of(p) for p in problems])
    prompt_length = ids.shape[1]
    generator = torch.Generator().manual_seed(seed)
    for _ in range(LENGTH + 1):  # the letters and the end token
        logits = model(input_ids=ids, use_cache=False).logits[:, -1]
        drawn = torch.multinomial(logits.float().softmax(-1), 1, generator=generator)
        ids = torch.cat([ids, drawn], dim=1)
    answers = tokenizer.batch_decode(ids[:, prompt_length:])
    counts = Counter(kind_of(p, answer) for p, answer in zip(problems, answers, strict=True))
    return {kind: counts[kind] / len(problems) for kind in KINDS}
