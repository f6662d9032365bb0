"""The one place that chooses device, dtypes and determinism. Nothing else asks torch about CUDA.

precision   trained weights   forward of the trained model   frozen weights (a teacher, an evaluated model)
fp32        fp32              fp32                           fp32
bf16        fp32              bf16 autocast                  bf16
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext

import torch

from boomspec.tasks import Precision

MASTER_DTYPE = torch.float32  # of weights that an optimiser updates, in every precision


def device() -> torch.device:
    """The device of this process: CUDA where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def frozen_dtype(precision: Precision) -> torch.dtype:
    """The dtype in which a model that is not trained is held."""
    return torch.bfloat16 if precision == "bf16" else torch.float32


def autocast(precision: Precision) -> AbstractContextManager[object]:
    """Run a model's forward in `precision`. For fp32 this changes nothing."""
    return torch.autocast(device().type, dtype=torch.bfloat16) if precision == "bf16" else nullcontext()


def make_deterministic() -> None:
    """Choose kernels that give the same bits on every run, where torch has them; warn where it has none."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read by cuBLAS at its first use
    torch.use_deterministic_algorithms(True, warn_only=True)
    # A debugging aid that comes with the line above and writes every new tensor twice.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
