"""Compile the decoder layers of a model with torch.compile, and say beforehand where that cannot work.

Layers are compiled one by one: all of one model have the same code, so it is compiled once for each shape of a micro
batch, with gradients and without. Shapes are fixed (no symbolic sizes): which kernels a micro batch gets depends on its
shape alone, not on what came before it, so a training that is resumed computes the same bits.

How far compiled layers are from plain ones is held by tests: in fp32 within rounding; in bf16 they are as near to the
fp32 result as plain bf16 is, for between two operations that are fused nothing is rounded to bf16.

What was compiled stays in TORCHINDUCTOR_CACHE_DIR, which all runs with one store share on one model of CPU
(`runners.runtime.environment`). On the CPU kernels are C++, which needs a compiler (g++, or what CXX names) and
Python's headers; on CUDA they are Triton's, which needs a C compiler for its launchers.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from boomspec.core.errors import BoomspecError, first_line
from runners.runtime.device import device


def check_compiler() -> None:
    """Compile something small for this process's device. Raises BoomspecError where that does not work."""
    at = device()

    def small(x: torch.Tensor) -> torch.Tensor:
        return torch.sin(x) + x

    try:
        with _settings():
            compiled(small)(torch.ones(8, device=at))
    except Exception as error:  # of many kinds: no compiler, no headers, one that fails, no Triton
        cause: BaseException = error
        while (deeper := cause.__cause__ or getattr(cause, "inner_exception", None)) is not None:
            cause = deeper
        needs = "Triton and a C compiler" if at.type == "cuda" else "a C++ compiler (g++, or what CXX names)"
        hint = f"install {needs} with Python's headers on every machine that trains, or leave out `compile`"
        what = f"`compile` is asked for, but torch.compile does not work here on {at.type}"
        raise BoomspecError(f"{what}: {first_line(cause)}", hint=hint) from error


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, dynamic=False)


@contextmanager
def compiling() -> Iterator[None]:
    """Around a training with compiled layers. Its end drops what was compiled from memory, not from the disk.

    Else the layers of later trainings in the same process would add to them, and torch compiles so many at most.
    """
    with _settings():
        try:
            yield
        finally:
            torch._dynamo.reset()


@contextmanager
def _settings() -> Iterator[None]:
    import torch._inductor.config as inductor  # imported late: it takes seconds, which only compiled trainings need

    # With one thread no pool of processes is started, which would outlive an interrupt.
    with inductor.patch(compile_threads=torch.get_num_threads()):
        yield
