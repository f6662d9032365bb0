"""The packages that a run's provenance and its lock name, as they are installed in this environment."""

from __future__ import annotations

import platform
from functools import cache
from importlib import metadata

from boomspec.core.version import __version__

# Those that compute, read or cut up what becomes a number of the report.
CHANGING_RESULTS = (
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "datasets",
    "pyarrow",
    "lm_eval",
    "accelerate",
    "numpy",
)
_OTHERS = ("ray", "pydantic", "huggingface_hub")


@cache
def installed() -> dict[str, str]:
    """Versions by name; what is not installed is left out."""
    versions = {"boomspec": __version__}
    for package in (*CHANGING_RESULTS, *_OTHERS):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def python() -> str:
    return platform.python_version()
