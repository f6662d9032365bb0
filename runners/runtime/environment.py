"""Environment variables of everything that runs: quiet, no telemetry, no files in the home folder.

A graph that reads nothing from the hub runs offline and keeps the libraries' caches in the store. One
that does uses the person's own hub cache, where the models may be already. What the person has set wins.
"""

import math
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from boomspec.core.identity import digest
from boomspec.core.machine import cpu_model

ALLOW_CPU = "BOOMSPEC_ALLOW_CPU"  # "1": a task whose GPU is declared, but not there, computes on the CPU. For tests
GPU_PROCESS = "BOOMSPEC_GPU_PROCESS"  # "1" in a worker's process that was started for tasks with GPUs
CACHE = "BOOMSPEC_CACHE"  # a folder of this machine for what can be made again
_GPUS = "BOOMSPEC_TASK_GPUS"  # what the task of this process has been given


def variables(root: Path, *, hub: bool) -> dict[str, str]:
    """The variables on a machine where the store's folder is `root`. `hub`: the graph reads something from there."""
    cache = root / "cache"
    always = {
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_EVALUATE_OFFLINE": "1",  # metrics of that library are code of the hub
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        CACHE: str(cache),
        # What torch.compile has compiled is for one model of CPU: machines that share a store may have several.
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor" / digest(cpu_model())[:12]),
    }
    if hub:
        return always
    offline = dict.fromkeys(("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE"), "1")
    return {**always, **offline, "HF_HOME": str(cache / "huggingface")}


def apply(settings: Mapping[str, str]) -> None:
    """Set what is not set yet. Before any library is imported: most read their variables only once."""
    for name, value in settings.items():
        os.environ.setdefault(name, value)


@cache
def apply_once(root: Path, *, hub: bool) -> None:
    """Set the `variables` of tasks in this process; a process that runs many of them has them after the first."""
    apply(variables(root, hub=hub))


def apply_resources(*, cpus: float, gpus: float) -> int:
    """Limit a worker to its share of the machine. Returns the number of threads."""
    threads = max(1, math.ceil(cpus))
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"):
        os.environ[name] = str(threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if threads > 1 else "false"
    os.environ[_GPUS] = f"{gpus:g}"
    if gpus == 0:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Ray leaves it unset, and the task would see every GPU
    return threads


def process_for(gpus: float) -> dict[str, Any]:
    """Ray's options for a task with so many GPUs: such as never get a process that worked without any.

    torch asks for GPUs once, and a task without them hides them from its process. Ray uses a process again only for
    tasks of the same runtime environment.
    """
    return {"runtime_env": {"env_vars": {GPU_PROCESS: "1"}}} if gpus else {}


def needs_gpu() -> bool:
    """Whether what this process computes must be computed on a GPU: its task has claimed one."""
    return float(os.environ.get(_GPUS, "0")) > 0 and os.environ.get(ALLOW_CPU) != "1"
