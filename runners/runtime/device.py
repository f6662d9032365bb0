"""The one place that chooses device, dtypes and determinism. Nothing else asks torch about CUDA.

precision   trained weights   forward of the trained model   frozen weights (a teacher, an evaluated model)
fp32        fp32              fp32                           fp32
bf16        fp32              bf16 autocast                  bf16
"""

import os
import socket
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from boomspec.core.errors import BoomspecError, first_line
from boomspec.core.tasks import Determinism, Precision
from runners.runtime import environment

_DETERMINISTIC = "deterministic"  # in the messages of torch about it
MASTER_DTYPE = torch.float32  # of weights that an optimiser updates, in every precision


def device() -> torch.device:
    """CUDA where there is any, else the CPU. Raises BoomspecError where a GPU was claimed and torch sees none."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible != "" and torch.cuda.is_available():  # torch reads the variable once, perhaps before it was set
        return torch.device("cuda")
    if not environment.needs_gpu():
        return torch.device("cpu")
    built = torch.version.cuda or torch.version.hip
    hint = "see what nvidia-smi says there; a driver that is too old needs an update, or a torch for an older CUDA"
    why = f"(for CUDA {built}) sees none"
    if built is None:
        why, hint = "is built for CPUs alone", "install a torch for its GPUs: https://pytorch.org/get-started/locally"
    else:
        try:
            torch.cuda.init()  # type: ignore[no-untyped-call]  # of torch
        except (RuntimeError, AssertionError) as error:
            why += f": {first_line(error)}"
    given = "" if visible is None else f" (CUDA_VISIBLE_DEVICES={visible})"
    what = f"the task has claimed a GPU of {socket.gethostname()}{given}"
    raise BoomspecError(f"{what}, but torch {torch.__version__} there {why}", hint=hint)


def frozen_dtype(precision: Precision) -> torch.dtype:
    """The dtype in which a model that is not trained is held."""
    return torch.bfloat16 if precision == "bf16" else torch.float32


def collective_backend(gpus: float) -> str:
    """The library through which workers with so many GPUs each talk to one another."""
    return "nccl" if gpus else "gloo"


def autocast(precision: Precision, *, cache: bool = True) -> AbstractContextManager[object]:
    """A forward in `precision`; fp32 changes nothing. `cache`: keep weights that were cast and are used again."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device().type, dtype=torch.bfloat16, cache_enabled=cache)


@contextmanager
def casts_kept() -> Iterator[None]:
    """Around `autocast` contexts between which no weight changes: weights that one has cast serve the others, too.

    Contexts of trainings that take turns may overlap: at the end of each all casts go, as weights change then.
    """
    torch.autocast_increment_nesting()  # torch drops its casts where the number of open contexts comes to 0
    try:
        yield
    finally:
        torch.autocast_decrement_nesting()
        torch.clear_autocast_cache()


@contextmanager
def deterministic_mode(determinism: Determinism | None, note: Callable[[str], None]) -> Iterator[None]:
    """Compute as a record says, None meaning its defaults; at the end torch's settings are as before.

    deterministic: the same bits on every run; where torch has no such kernel, `note` is called. strict: raises
    BoomspecError there. any: the fastest.
    """
    algorithms = "deterministic" if determinism is None else determinism.algorithms
    tf32 = determinism is not None and determinism.tf32
    repeatable = algorithms != "any"
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    flags: dict[tuple[Any, str], bool] = {
        (torch.utils.deterministic, "fill_uninitialized_memory"): False,  # for debugging: it writes every tensor twice
        (torch.backends.cudnn, "benchmark"): not repeatable,
        (torch.backends.cudnn, "deterministic"): repeatable,
        (torch.backends.cuda.matmul, "allow_tf32"): tf32,
        (torch.backends.cudnn, "allow_tf32"): tf32,
    }
    flags_before = {(owner, name): getattr(owner, name) for owner, name in flags}
    try:
        if repeatable:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read by cuBLAS at its first use
        torch.use_deterministic_algorithms(repeatable, warn_only=algorithms == "deterministic")
        for (owner, name), value in flags.items():
            setattr(owner, name, value)
        with _warnings_as_notes(note):
            yield
    except RuntimeError as error:
        if algorithms == "strict" and _DETERMINISTIC in str(error):
            hint = "`determinism: {algorithms: deterministic}` warns here instead"
            raise BoomspecError(f"determinism.algorithms is strict, but {_without_advice(error)}", hint=hint) from error
        raise
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        for (owner, name), value in flags_before.items():
            setattr(owner, name, value)


@contextmanager
def _warnings_as_notes(note: Callable[[str], None]) -> Iterator[None]:
    """torch warns where it cannot be deterministic; in a log nobody would see that. Other warnings stay warnings."""
    with warnings.catch_warnings():
        show = warnings.showwarning

        def note_or_show(message: Warning | str, *place: Any, **rest: Any) -> None:
            if _DETERMINISTIC in str(message):
                note(f"warning: {_without_advice(message)}: made again, this may come out with other bits")
            else:
                show(message, *place, **rest)

        warnings.showwarning = note_or_show
        yield


def _without_advice(message: object) -> str:
    """A message of torch, without its advice on settings that are not the user's."""
    return str(message).partition(", but")[0].partition(". ")[0]
