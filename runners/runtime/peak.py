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
from typing import Any, Literal

import torch

from boomspec.core.devices import device_seen_as
from boomspec.core.files import write_atomically
from boomspec.core.json_text import json_text
from boomspec.core.machine import cpu_model
from boomspec.core.tasks import Determinism, Precision
from runners.runtime import environment
from runners.runtime.device import device

_FILE = "peaks.json"
_WIDTHS = 256, 2048  # of the square matrices, the first and the last
_TIMES = 4  # of each; the first is often slow
_SECONDS = 0.5  # about as much in all; a CPU without units for a dtype gets no further than the first widths


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
    return Peak(name, _of_cpu(name, precision), "measured") if measure else Peak(name, None, "unknown")


@cache
def _of_cpu(name: str, precision: Precision) -> float:
    """Operations a second: as found in the cache of the store, else measured and put there."""
    folder = os.environ.get(environment.CACHE)
    file = None if folder is None else Path(folder) / _FILE
    key, known = f"{socket.gethostname()}: {name}, torch {torch.__version__}, {precision}", dict[str, Any]()
    if file is not None:
        with suppress(OSError, ValueError, TypeError):
            known = dict(json.loads(file.read_text(encoding="utf-8")))
    if isinstance(found := known.get(key), float):
        return found
    dtypes = (torch.float32, torch.bfloat16) if precision == "bf16" else (torch.float32,)
    found = max(map(_matrix_products, dtypes))  # without units for bf16 a CPU is faster in fp32
    if file is not None:
        with suppress(OSError):  # a full disk: it is measured again
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, json_text({**known, key: found}, indent=1) + "\n")
    return found


@torch.no_grad()
def _matrix_products(dtype: torch.dtype) -> float:
    """Operations a second of the fastest product of two square matrices, in the layout of a linear layer."""
    began, best, width = time.perf_counter(), 0.0, _WIDTHS[0]
    while True:
        matrix, shortest = torch.full((width, width), 0.5, dtype=dtype), float("inf")
        for _ in range(_TIMES):
            started = time.perf_counter()
            torch.nn.functional.linear(matrix, matrix)
            shortest = min(shortest, time.perf_counter() - started)
        best = max(best, 2 * width**3 / shortest)
        # The next ones are twice as wide and take eight times as long.
        if width == _WIDTHS[1] or time.perf_counter() - began > _SECONDS / 8:
            return best
        width *= 2
