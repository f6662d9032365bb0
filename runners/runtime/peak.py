"""The most operations a second that this process's device can do, which model FLOPs utilisation (MFU) is a share of.

a GPU of the table   what its maker publishes for dense matrices (`boomspec.core.devices`)
another GPU          unknown
the CPU              the fastest of a few matrix products in the dtype and with the threads of the task. They take a
                     third of a second, once for each machine: the store's cache keeps the result
"""

import json
import os
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import torch

from boomspec.core.devices import device_seen_as
from boomspec.core.files import write_atomically
from boomspec.core.json_text import json_text
from boomspec.core.machine import cpu_model
from boomspec.core.tasks import Determinism, Precision
from runners.runtime import environment
from runners.runtime.device import device

_FILE = "peaks.json"
_WIDTHS = 256, 512, 1024, 2048  # of the square matrices; a CPU without units for a dtype gets to the first ones alone
_SECONDS = 0.1  # for each width, and for some products at least
_MEASURED = 3  # times: a machine that is busy now seems slower than it is, so the best counts


@dataclass(frozen=True)
class Peak:
    """What one worker computes on. `flops`: a second; None where it is not known."""

    device: str
    flops: float | None
    origin: Literal["table", "measured", "unknown"]


def device_peak(precision: Precision, determinism: Determinism | None = None, *, measure: bool = True) -> Peak:
    """The peak of this process's device for matrix products in `precision`; without `measure` that of a table alone."""
    bf16 = precision == "bf16"
    if device().type == "cuda":
        name = torch.cuda.get_device_name()
        known, tf32 = device_seen_as(name), determinism is not None and determinism.tf32
        return Peak(name, None, "unknown") if known is None else Peak(name, known.peak(bf16=bf16, tf32=tf32), "table")
    threads = torch.get_num_threads()
    name = f"{cpu_model()}, {threads} {'thread' if threads == 1 else 'threads'}"
    return Peak(name, threads * _of_thread(precision), "measured") if measure else Peak(name, None, "unknown")


@cache
def _of_thread(precision: Precision) -> float:
    """Operations a second of one thread of the CPU: the best in the cache of the store, and of what is measured now."""
    folder = os.environ.get(environment.CACHE)
    file = None if folder is None else Path(folder) / _FILE
    key = f"{socket.gethostname()}: {cpu_model()}, torch {torch.__version__}, {precision}"
    known: dict[str, list[float]] = {}
    if file is not None:
        with suppress(OSError, ValueError, TypeError):
            known = dict(json.loads(file.read_text(encoding="utf-8")))
    found = [float(value) for value in known.get(key, ())]
    if len(found) < _MEASURED:
        dtypes = (torch.float32, torch.bfloat16) if precision == "bf16" else (torch.float32,)
        found.append(max(map(_matrix_products, dtypes)))  # without units for bf16 a CPU is faster in fp32
        if file is not None:
            with suppress(OSError):  # a full disk: it is measured again
                file.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(file, json_text({**known, key: found}, indent=1) + "\n")
    return max(found)


@torch.no_grad()
def _matrix_products(dtype: torch.dtype) -> float:
    """Operations a second of one thread in the fastest product of square matrices, in the layout of a linear layer."""
    best, threads = 0.0, torch.get_num_threads()
    torch.set_num_threads(1)  # several would wait for one another where the machine is busy
    for width in _WIDTHS:
        matrix, shortest = torch.full((width, width), 0.5, dtype=dtype), float("inf")
        until = time.monotonic() + _SECONDS
        while time.monotonic() < until or shortest == float("inf"):
            started = time.perf_counter()
            torch.nn.functional.linear(matrix, matrix)
            shortest = min(shortest, time.perf_counter() - started)
        best = max(best, 2 * width**3 / shortest)
        if 8 * shortest > 2 * _SECONDS:  # twice as wide it takes eight times as long
            break
    torch.set_num_threads(threads)
    return best
