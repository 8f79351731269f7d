"""Memory of this process: a GPU's allocator, or the resident set."""

from pathlib import Path

import torch

from benchmarks.speed.errors import UsageError


class Meter:
    """Peak memory in bytes, of a GPU's allocator or of this process."""

    def __init__(self) -> None:
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
        """Until all that was begun on the GPU is done."""
        if self.cuda:
            self.cuda.synchronize()

    def _status(self, name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))


def limit(gib: float) -> None:
    """Let this process use no more than that of the GPU, as on a smaller card.

    Raises:
        UsageError: there is no GPU.
    """
    if not torch.cuda.is_available():
        raise UsageError("--memory-limit is of a GPU, and there is none here")
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, gib * 2**30 / total))
