"""This machine: its processor, memory and disks, and the packages that are installed on it."""

import os
import platform
import re
import shutil
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path

import boomspec

# Packages that compute, read or cut up what becomes a number of the report.
CHANGING_RESULTS = (
    "torch", "transformers", "tokenizers", "safetensors", "datasets", "pyarrow", "lm_eval", "accelerate", "numpy",
)  # fmt: skip
_OTHERS = ("ray", "pydantic", "huggingface_hub")


@cache
def installed() -> dict[str, str]:
    """Versions by name, for provenance and locks; what is not installed is left out."""
    versions = {"boomspec": boomspec.__version__}
    for package in (*CHANGING_RESULTS, *_OTHERS):
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions


def install_line(extra: str) -> str:
    """What to type for an extra of this package: from a clone, where this is one."""
    clone = Path(boomspec.__file__).parents[1]
    if not (clone / "pyproject.toml").is_file():
        return f"pip install 'boomspec[{extra}]'"
    return f"pip install -c {clone / 'constraints.txt'} -e '{clone}[{extra}]'"


def user_cache() -> Path:
    """The folder for what is made again when it is gone."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser(), "boomspec")


@cache
def cpu_model() -> str:
    with suppress(OSError):
        if found := re.search(r"^model name\s*:(.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE):
            return found[1].strip()
    return platform.processor()


def cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def available_bytes() -> int:
    """Memory that can be had without swapping: of the machine, and of the container (cgroup v2) around this process."""
    with suppress(OSError, ValueError, TypeError):
        of_machine = re.search(r"^MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
        found = int(of_machine[1]) * 1024 if of_machine else memory_bytes()
        with suppress(OSError, ValueError, TypeError):  # no limit there is the word "max"
            group = Path("/sys/fs/cgroup")
            limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
            cached = re.search(r"^inactive_file (\d+)", (group / "memory.stat").read_text(), re.MULTILINE)
            found = min(found, limit - used + (int(cached[1]) if cached else 0))
        return found
    return memory_bytes()


def free_bytes(folder: Path) -> int:
    """Free space where a folder is, or will be."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
