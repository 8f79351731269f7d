"""Time and memory of each contender on random hidden states, and the table."""

import statistics
import time
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from benchmarks.speed.heads.contenders import CONTENDERS, Contender, Function, chunks_of
from benchmarks.speed.memory import Meter
from benchmarks.speed.processes import last_line
from benchmarks.speed.tables import Result, Results, markdown, megabytes, number, ratio

BARE = "bare product"
CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
HEADER = (
    *("head", "tokens a chunk", "forward, ms", "with gradient, ms", "of one product", "of two"),
    *("MB forward", "MB with gradient", "error, nats"),
)
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
KINDS = ("forward", "gradient")


@dataclass(frozen=True)
class Sizes:
    """Of the head; chunks: tokens that ours takes at a time, besides what it would take by itself."""

    tokens: int = 4096 if CUDA else 128
    hidden: int = 4096
    vocabulary: int = 128_256
    dtype: str = "bfloat16" if CUDA else "float32"
    chunks: tuple[int, ...] = (128, 256, 512, 1024, 2048) if CUDA else (32, 64)
    repeats: int = 5 if CUDA else 3


def main(given: dict[str, Any], results: Results) -> None:
    """Measure all contenders; those that are not installed are said to be absent."""
    sizes = Sizes(**{f.name: given[f.name] for f in fields(Sizes) if f.name in given})
    print(
        f"{sizes.tokens:,} tokens, {sizes.hidden:,} x {sizes.vocabulary:,}, {sizes.dtype}, {DEVICE}",
        flush=True,
    )
    inputs = _inputs(sizes)
    found = []
    for name, make in CONTENDERS.items():
        try:
            contender = make()
        except ImportError as error:
            found.append(results.add({"head": name, "failed": f"absent: {error}"}))
            continue
        for chunk in (None, *sizes.chunks) if contender.chunked else (None,):
            with chunks_of(chunk, DEVICE, sizes.vocabulary) as tokens:
                shown = f"{name}, as it is" if contender.chunked and chunk is None else name
                head = {"head": shown, "chunk": tokens if contender.chunked else sizes.tokens}
                found.append(results.add({**head, **_measure(name, contender, inputs, sizes.repeats)}))
    print(table(found), flush=True)


def _inputs(sizes: Sizes) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    dtype = DTYPES[sizes.dtype]
    hidden = torch.randn(sizes.tokens, sizes.hidden, device=DEVICE, dtype=dtype)
    weight = torch.randn(sizes.vocabulary, sizes.hidden, device=DEVICE, dtype=dtype) / sizes.hidden**0.5
    return hidden, weight, torch.randint(sizes.vocabulary, (sizes.tokens,), device=DEVICE)


def _measure(name: str, contender: Contender, inputs: tuple, repeats: int) -> Result:
    result: Result = {}
    try:
        for kind, function in zip(KINDS, (contender.forward, contender.with_gradient), strict=True):
            if function is not None:
                result |= {f"{kind} {key}": value for key, value in _timed(function, inputs, repeats).items()}
        if contender.forward is not None and name != BARE:
            result["error"] = _error(contender.forward, inputs)
    except Exception as error:  # a kernel that needs a GPU, or memory that is not there: the others go on
        return {"failed": last_line(f"{type(error).__name__}: {error}")}
    return result


def _timed(function: Function, inputs: tuple, repeats: int) -> dict[str, float]:
    """Median seconds of some calls after one, and on a GPU the peak of memory above what was held before.

    A CPU's resident set does not tell: memory that an earlier call has freed is used again.
    """
    meter = Meter()
    function(*inputs)
    held = meter.now()
    meter.reset()
    times = []
    for _ in range(repeats):
        meter.wait()
        began = time.perf_counter()
        function(*inputs)
        meter.wait()
        times.append(time.perf_counter() - began)
    used = {"bytes": meter.peak() - held} if meter.cuda else {}
    return {"seconds": statistics.median(times), **used}


def _error(forward: Function, inputs: tuple) -> float:
    """The largest difference from log-probabilities in float32, of the first tokens."""
    hidden, weight, targets = inputs
    logits = hidden[:64].float() @ weight.float().T
    expected = logits.log_softmax(-1).gather(1, targets[:64, None])[:, 0]
    return (forward(*inputs)[:64].float() - expected).abs().max().item()


def table(found: list[Result]) -> str:
    """Times also as multiples of one and two bare products."""
    first = next(result for result in found if result["head"] == BARE)
    return markdown(HEADER, [_row(result, first) for result in found])


def _row(result: Result, first: Result) -> list[str]:
    if "failed" in result:
        return [result["head"], "", result["failed"], *[""] * (len(HEADER) - 3)]
    return [
        result["head"],
        f"{result['chunk']:,}",
        *(number(result, f"{kind} seconds", ".1f", 1e-3) for kind in KINDS),
        *(ratio(result, first, f"{kind} seconds") for kind in KINDS),
        *(megabytes(result, f"{kind} bytes") for kind in KINDS),
        number(result, "error", ".1e"),
    ]
