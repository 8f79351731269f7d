"""One step under PyTorch's profiler."""

import time
from collections import Counter
from collections.abc import Iterable
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from transformers import TrainerCallback

from benchmarks.speed.memory import Meter
from benchmarks.speed.profiling.kinds import kind_of

PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm")


class Kernel(NamedTuple):
    """One that a GPU ran: when, in seconds."""

    name: str
    start: float
    end: float


class Wait(NamedTuple):
    """A GPU ran nothing for so many seconds, between the kernels of these names."""

    seconds: float
    after: str
    before: str


class Recorded(NamedTuple):
    """seconds: of the step under the profiler; kinds: seconds of kernels, by kind; top: the kernels that take
    longest, by name; flops: of the step's matrix products, without attention's; waits: the longest times in
    which a GPU ran no kernel.
    """

    seconds: float
    kinds: dict[str, float]
    top: dict[str, float]
    flops: float
    waits: list[Wait]


class Recorder(TrainerCallback):
    """Profiles the step after so many, from their end on: what comes before its passes is of it.

    trace: where to write all events, for chrome://tracing or Perfetto.
    """

    def __init__(self, after: int, trace: Path | None = None) -> None:
        self._after = after
        self._trace = trace
        self._meter = Meter()
        self._profile: profile | None = None
        self.recorded: Recorded | None = None

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._profile is not None:
            self._meter.wait()
            seconds = time.perf_counter() - self._began
            self._profile.__exit__(None, None, None)
            if self._trace is not None:
                self._profile.export_chrome_trace(str(self._trace))
            self.recorded = _read(self._profile, seconds, on_gpu=self._meter.cuda is not None)
            self._profile = None
        elif state.global_step == self._after:
            activities = [ProfilerActivity.CPU]
            if self._meter.cuda:
                activities.append(ProfilerActivity.CUDA)
            self._meter.wait()
            self._profile = profile(activities=activities, record_shapes=True, with_flops=True).__enter__()
            self._began = time.perf_counter()


def _read(recorded: profile, seconds: float, on_gpu: bool) -> Recorded:
    averages = recorded.key_averages()
    names: Counter[str] = Counter()
    for event in averages:
        if event.is_user_annotation or (event.device_type == DeviceType.CPU) == on_gpu:
            continue
        own = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        names[event.key] += own / 1e6
    kinds: Counter[str] = Counter()
    for name, own in names.items():
        kinds[kind_of(name)] += own
    flops = sum(event.flops or 0 for event in averages if event.key in PRODUCTS)
    kernels = [
        Kernel(event.name, event.time_range.start / 1e6, event.time_range.end / 1e6)
        for event in recorded.events()
        if event.device_type == DeviceType.CUDA and not event.is_user_annotation
    ]
    return Recorded(seconds, dict(kinds), dict(names.most_common(20)), flops, longest_waits(kernels))


def longest_waits(kernels: Iterable[Kernel], most: int = 10) -> list[Wait]:
    """The longest times between two kernels in which none ran, the longest first."""
    ordered = sorted(kernels, key=lambda kernel: kernel.start)
    waits = []
    for last, kernel in zip(accumulate(ordered, _ends_later), ordered[1:], strict=False):
        if kernel.start > last.end:
            waits.append(Wait(kernel.start - last.end, last.name, kernel.name))
    return sorted(waits, reverse=True)[:most]


def _ends_later(one: Kernel, other: Kernel) -> Kernel:
    return max(one, other, key=lambda kernel: kernel.end)


def peak_flops(size: int | None = None, repeats: int = 10) -> float:
    """FLOP a second that a large square matrix product reaches here, in bf16 on a GPU, else in float32."""
    meter = Meter()
    device, dtype = ("cuda", torch.bfloat16) if meter.cuda else ("cpu", torch.float32)
    size = size or (8192 if meter.cuda else 1024)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    times = []
    for _ in range(repeats):
        meter.wait()
        began = time.perf_counter()
        a @ b
        meter.wait()
        times.append(time.perf_counter() - began)
    return 2 * size**3 / min(times[1:])
