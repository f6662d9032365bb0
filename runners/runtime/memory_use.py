"""Measure the memory that something takes while it runs on this process's device.

    with measuring() as used: ...        # used.peak is known in the end
    model = cache = None                 # then, where all of it is gone:
    used.settled()                       # bytes

GPU   the most that torch had allocated at one moment (`torch.cuda.max_memory_allocated`): weights, cache, activations
CPU   the largest resident set of the process meanwhile, less what is resident when all of it is gone again. So what
      python and its packages take does not count, nor what the process had read before. Linux alone says it
"""

import ctypes
import gc
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from runners.runtime.device import device

ON_GPU = "the most that torch had allocated on the GPU at one moment"
ON_CPU = "the largest resident set of the process, less what stays when model and cache are gone"
UNKNOWN = "not measured: this system does not say how large a process was at its largest"
_SELF = Path("/proc/self")


@dataclass
class MemoryUse:
    """`peak`: bytes at the largest moment of the device or the process; None where nobody says it."""

    how: str
    peak: int | None = None

    def settled(self) -> int | None:
        """The bytes that were taken, now that nothing of it is there any more."""
        if self.peak is None or self.how != ON_CPU:
            return self.peak
        _give_back()
        return max(0, self.peak - (_resident("VmRSS") or 0))


@contextmanager
def measuring() -> Iterator[MemoryUse]:
    """The memory at the largest moment within this context, what was there before it included."""
    if device().type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        used = MemoryUse(ON_GPU)
        yield used
        torch.cuda.synchronize()
        used.peak = torch.cuda.max_memory_allocated()
        return
    _give_back()
    used = MemoryUse(ON_CPU if _forget_peak() else UNKNOWN)
    yield used
    used.peak = _resident("VmHWM") if used.how == ON_CPU else None


def _forget_peak() -> bool:
    """Let the kernel count the largest resident set of this process from now on."""
    with suppress(OSError):
        (_SELF / "clear_refs").write_text("5")
        return True
    return False


def _resident(name: str) -> int | None:
    """VmHWM, the largest resident set, or VmRSS, that of now: bytes."""
    with suppress(OSError):
        found = re.search(rf"^{name}:\s*(\d+) kB", (_SELF / "status").read_text(), re.MULTILINE)
        return int(found[1]) * 1024 if found else None
    return None


def _give_back() -> None:
    """Give memory back to the system that python and the C library keep for later."""
    gc.collect()
    with suppress(OSError, AttributeError):  # another C library than GNU's
        ctypes.CDLL(None).malloc_trim(0)
