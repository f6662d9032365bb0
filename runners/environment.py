"""Environment variables of everything that runs: quiet, no telemetry, no files in the home folder.

A graph that reads nothing from the hub runs offline and keeps the libraries' caches in the store. One
that does uses the person's own hub cache, where the models may be already. What the person has set wins.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from boomspec.graph import Source


def settings(sources: Iterable[Source], store: Path) -> dict[str, str]:
    """The variables for one graph."""
    cache = store / "cache"
    always = {
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "MPLBACKEND": "agg",
        "MPLCONFIGDIR": str(cache / "matplotlib"),
    }
    if any(_needs_hub(source) for source in sources):
        return always
    offline = dict.fromkeys(("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE"), "1")
    return {**always, **offline, "HF_HOME": str(cache / "huggingface")}


def _needs_hub(source: Source) -> bool:
    # Stock lm-eval tasks load their documents from the hub.
    return "hub" in source.identity or "lm_eval" in source.identity


def apply(variables: Mapping[str, str]) -> None:
    """Set what is not set yet. Before any library is imported: most read their variables only once."""
    for name, value in variables.items():
        os.environ.setdefault(name, value)


def apply_resources(*, cpus: float, gpus: float) -> int:
    """Limit a worker to its share of the machine. Returns the number of threads."""
    threads = max(1, math.ceil(cpus))
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"):
        os.environ[name] = str(threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if threads > 1 else "false"
    if gpus == 0:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Ray leaves it unset, and the task would see every GPU
    return threads
