"""Seconds and memory of a training step, against TRL's trainer and Liger's fused DPO loss.

    python -m benchmarks.speed                       # the cases of SPEED.md
    python -m benchmarks.speed --cases fixed --steps 2
    python -m benchmarks.speed --model llama-3-8b --adapter qlora --lengths 2048 --micro-batch 1 2 4 8 16

Every contender trains the same random model on the same tokens, each in a fresh process, in turn. A step is
all that happens from one optimizer step to the next. Memory is the peak of a step above what the process
held when the model was loaded: on a GPU the allocator's, on a CPU the resident set. Times are medians.
"""

import argparse
import json
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

TRL, LIGER = "TRL aot", "TRL dpo, Liger"
OURS, MICRO = "ours", "ours, micro_batch"
TOKENIZER_VOCABULARY = 1_000  # of the tokens that occur; what they mean does not matter here

# As their published configurations have it; "small" is the model of SPEED.md's first table.
MODELS: dict[str, dict[str, Any]] = {
    "small": {
        "hidden_size": 256,
        "intermediate_size": 704,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 128_256,
    },
    "llama-3-8b": {
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128_256,
        "rope_theta": 500_000.0,
    },
    "qwen-2.5-7b": {
        "hidden_size": 3584,
        "intermediate_size": 18_944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152_064,
        "rope_theta": 1_000_000.0,
    },
}


@dataclass(frozen=True)
class Case:
    """What is trained. lengths: tokens of each sequence, or "real" for a distribution of them, in which
    prompts and completions have at most `longest` tokens together.

    prompt: the prompt's share of a sequence, for lengths in tokens. cached: whether the reference is
    computed before. micro_batch: in pairs.
    """

    model: str = "small"
    vocabulary: int | None = None
    lengths: str = "384"
    longest: int = 512
    prompt: float = 0.5
    micro_batch: int = 4
    accumulation: int = 1
    adapter: str = "lora"
    checkpointing: bool | None = None  # None: of all models but the small one
    cached: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    contenders: tuple[str, ...] = (TRL, LIGER, OURS)
    steps: int = 3


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


# --- Data ------------------------------------------------------------------------------------


def real_lengths(data: Path | None, count: int) -> list[tuple[int, int, int]]:
    """Tokens of prompt, chosen and rejected, of real pairs where there are any at hand."""
    rng = random.Random(0)
    if data is not None:
        texts = [json.loads(line) for line in data.read_text().splitlines()]

        def tokens(text: str) -> int:  # words and their ends, as tokenizers of English have it
            return max(1, round(1.15 * len(re.findall(r"\w+|[^\w\s]", text))))

        rows = [
            (
                tokens(" ".join(m["content"] for m in row["messages"])),
                tokens(_text(row["chosen"])),
                tokens(_text(row["rejected"])),
            )
            for row in texts
        ]
        return rng.choices(rows, k=count)

    def log_normal(median: float, sigma: float) -> int:
        return max(1, round(median * rng.lognormvariate(0, sigma)))

    # fitted to the pairs named above
    return [(log_normal(30, 0.8), log_normal(270, 0.8), log_normal(250, 1.0)) for _ in range(count)]


def _text(answer: Any) -> str:
    if isinstance(answer, list):
        answer = answer[-1]
    return answer["content"] if isinstance(answer, dict) else answer


def rows(case: Case, data: Path | None, count: int) -> dict[str, list]:
    rng = random.Random(1)
    if case.lengths == "real":
        sizes = [r for r in real_lengths(data, 20 * count) if r[0] + max(r[1:]) <= case.longest][:count]
    else:
        total = int(case.lengths)
        prompt = max(1, int(total * case.prompt))
        sizes = [(prompt, total - prompt, total - prompt)] * count
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    columns = {
        name: [[rng.randrange(TOKENIZER_VOCABULARY) for _ in range(s[i])] for s in sizes]
        for i, name in enumerate(names)
    }
    return {**columns, **{name: [""] * count for name in ("prompt", "chosen", "rejected")}}


# --- One contender, in a process of its own ----------------------------------------------------


class Meter:
    """Peak memory in bytes, of a GPU's allocator or of this process."""

    def __init__(self) -> None:
        import torch

        self.cuda = torch.cuda if torch.cuda.is_available() else None

    def now(self) -> int:
        if self.cuda:
            return self.cuda.memory_allocated()
        return self._status("VmRSS")

    def reset(self) -> None:
        if self.cuda:
            self.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")

    def peak(self) -> int:
        return self.cuda.max_memory_allocated() if self.cuda else self._status("VmHWM")

    def wait(self) -> None:
        if self.cuda:
            self.cuda.synchronize()

    def _status(self, name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))


def load_model(case: Case, attention: str) -> Any:
    import torch
    from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

    shape = dict(MODELS[case.model])
    shape["vocab_size"] = case.vocabulary or shape["vocab_size"]
    cuda = torch.cuda.is_available()
    dtype = torch.bfloat16 if cuda else torch.float32
    theta = shape.pop("rope_theta", 10_000.0)
    config = LlamaConfig(
        **shape,
        rope_parameters={"rope_type": "default", "rope_theta": theta},
        max_position_embeddings=8192,
        pad_token_id=0,
        dtype=dtype,
    )
    config._attn_implementation = attention
    torch.manual_seed(0)
    if case.adapter != "qlora":
        with torch.device("cuda" if cuda else "cpu"):
            return LlamaForCausalLM._from_config(config, dtype=dtype)
    with tempfile.TemporaryDirectory() as folder:
        LlamaForCausalLM._from_config(config, dtype=dtype).save_pretrained(folder)
        quantization = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
        )
        return LlamaForCausalLM.from_pretrained(
            folder,
            quantization_config=quantization,
            dtype=dtype,
            attn_implementation=attention,
            device_map={"": 0 if cuda else "cpu"},
        )


def build(contender: str, case: Case, data: dict[str, list], folder: Path, attention: str) -> Any:
    import torch
    from axolotl.core.trainers.dpo.args import AxolotlDPOConfig
    from datasets import Dataset
    from peft import LoraConfig, prepare_model_for_kbit_training
    from transformers import set_seed
    from trl import DPOConfig, DPOTrainer

    from axolotl_aot.config import AOTArgs
    from axolotl_aot.training.run_setup import AOTSetup
    from axolotl_aot.training.trainers import AOTTrainer
    from tests.tiny import make_tokenizer

    tokenizer = make_tokenizer(["a b c"])
    model = load_model(case, attention)
    checkpointing = case.model != "small" if case.checkpointing is None else case.checkpointing
    if case.adapter == "qlora":
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=checkpointing)
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    reference = load_model(case, attention).eval().requires_grad_(False) if case.adapter == "full" else None
    meter = Meter()
    held = meter.now()
    args = {
        "output_dir": str(folder / "out"),
        "per_device_train_batch_size": case.micro_batch,
        "per_device_eval_batch_size": case.micro_batch,
        "gradient_accumulation_steps": case.accumulation,
        "max_steps": case.steps + 1,
        "learning_rate": 1e-5,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "bf16": torch.cuda.is_available(),
        "use_cpu": not torch.cuda.is_available(),
        "max_length": None,
        "gradient_checkpointing": checkpointing,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "disable_tqdm": True,
        "beta": 0.1,
        "seed": 42,
    }
    common = {
        "train_dataset": Dataset.from_dict(data),
        "processing_class": tokenizer,
        "peft_config": None if case.adapter == "full" else lora,
    }
    set_seed(args["seed"])  # LoRA is drawn alike for all
    if contender in (TRL, LIGER):

        class Tokenized(DPOTrainer):
            """TRL's trainer on the tokens as they are."""

            def _prepare_dataset(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
                return dataset

        loss = (
            {"loss_type": ["aot"]}
            if contender == TRL
            else {"loss_type": ["sigmoid"], "use_liger_kernel": True}
        )
        config = DPOConfig(**args, **loss, precompute_ref_log_probs=case.cached)
        return Tokenized(model, reference, args=config, **common), held
    scope = "micro_batch" if contender == MICRO else "effective_batch"
    setup = AOTSetup(
        AOTArgs(aot_scope=scope, **case.options),
        reference_folder=folder / "references" if case.cached else None,
    )
    config = AxolotlDPOConfig(**args)
    return AOTTrainer(model, reference, args=config, callbacks=[setup], **common), held


def measure(contender: str, case: Case, data: Path | None, attention: str) -> dict[str, Any]:
    from transformers import TrainerCallback

    meter = Meter()
    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            meter.wait()
            ends.append(time.perf_counter())
            if len(ends) == 1:  # what comes once at the start is not of a step
                meter.reset()

    with tempfile.TemporaryDirectory() as folder:
        table = rows(case, data, case.micro_batch * case.accumulation * (case.steps + 1))
        trainer, held = build(contender, case, table, Path(folder), attention)
        trainer.add_callback(Clock())
        trainer.train()
        peak = meter.peak() - held
    seconds = statistics.median(b - a for a, b in pairwise(ends))
    tokens = sum(2 * len(p) + len(c) + len(r) for p, c, r in zip(*list(table.values())[:3], strict=True))
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    return {
        "seconds": seconds,
        "tokens_per_second": tokens / (case.steps + 1) / seconds,
        "bytes": peak,
        "loss": log[0]["loss"],
        "grad_norm": log[0]["grad_norm"],
    }


# --- All of them -------------------------------------------------------------------------------


def in_its_own_process(contender: str, case: Case, data: Path | None, attention: str) -> dict[str, Any]:
    """What `measure` returns; or {"failed": the last line of the error}."""
    job = {"contender": contender, "case": asdict(case), "data": data and str(data), "attention": attention}
    command = [sys.executable, "-m", "benchmarks.speed", "--job", json.dumps(job)]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        return {"failed": (run.stderr.strip().splitlines() or ["no output"])[-1][:200]}
    return json.loads(run.stdout.strip().splitlines()[-1])


def with_ratios(results: dict[str, dict[str, Any]], case: Case) -> dict[str, dict[str, Any]]:
    """The results, each with its time and memory as a share of the first contender's."""
    first = results[case.contenders[0]]
    return {
        name: {**r, **{f"{k} ratio": r[k] / first[k] for k in ("seconds", "bytes") if k in r and k in first}}
        for name, r in results.items()
    }


def report(results: dict[str, dict[str, dict[str, Any]]]) -> Table:
    table = Table("case", "trainer", "s / step", "tokens / s", "MB above the model", "time", "memory")
    for name, contenders in results.items():
        for contender, r in contenders.items():
            if "failed" in r:
                table.add_row(name, contender, r["failed"], "", "", "", "")
                continue
            ratios = [f"{r[f'{k} ratio']:.2f}" if f"{k} ratio" in r else "" for k in ("seconds", "bytes")]
            table.add_row(
                name,
                contender,
                f"{r['seconds']:.2f}",
                f"{r['tokens_per_second']:,.0f}",
                f"{r['bytes'] / 2**20:,.0f}",
                *ratios,
            )
    return table


def chosen_cases(options: argparse.Namespace) -> dict[str, Case]:
    """The named cases, changed by what the command line says."""
    given = {
        "model": options.model,
        "vocabulary": options.vocabulary,
        "adapter": options.adapter,
        "checkpointing": options.checkpointing,
        "lengths": options.lengths,
        "longest": options.longest,
        "accumulation": options.accumulation,
        "steps": options.steps,
        "contenders": options.contenders and tuple(options.contenders),
    }
    given = {key: value for key, value in given.items() if value is not None}
    known = {**CASES, **SWEEP}
    cases = {name: replace(known[name], **given) for name in options.cases}
    if not options.micro_batch:
        return cases
    return {
        f"{name}, micro-batch {size}": replace(case, micro_batch=size)
        for name, case in cases.items()
        for size in options.micro_batch
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=[*CASES, *SWEEP])
    parser.add_argument("--model", choices=MODELS)
    parser.add_argument("--vocabulary", type=int)
    parser.add_argument("--adapter", choices=["full", "lora", "qlora"])
    parser.add_argument("--checkpointing", action=argparse.BooleanOptionalAction, help="of gradients")
    parser.add_argument("--lengths", help="tokens of each sequence, or real")
    parser.add_argument("--longest", type=int, help="of real lengths, prompt and completion together")
    parser.add_argument("--micro-batch", type=int, nargs="+", help="in pairs; several are tried in turn")
    parser.add_argument("--accumulation", type=int)
    parser.add_argument("--steps", type=int, help="measured, after one that is not")
    parser.add_argument("--contenders", nargs="+", choices=[TRL, LIGER, MICRO, OURS])
    parser.add_argument("--attention", default="sdpa", help="transformers' name of it")
    parser.add_argument(
        "--data", type=Path, help="pairs.jsonl, for real lengths; a fitted distribution without"
    )
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        job = json.loads(options.job)
        case = Case(**{**job["case"], "contenders": tuple(job["case"]["contenders"])})
        data = job["data"] and Path(job["data"])
        print(json.dumps(measure(job["contender"], case, data, job["attention"])))
        return
    console = Console(width=120)
    results = {}
    for name, case in chosen_cases(options).items():
        found = {}
        for contender in case.contenders:
            with console.status(f"{name}: {contender}"):
                found[contender] = in_its_own_process(contender, case, options.data, options.attention)
        results[name] = with_ratios(found, case)
        console.print(report({name: results[name]}))
        if options.json:
            options.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
