"""What every test runs under: one thread for each process (two on a busy machine can stall OpenMP), no model hub."""

import os
import shutil
from pathlib import Path

import pytest

# Before torch or transformers is imported, by a test or by a process that a test starts.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Ray reads it when it is imported, which may be long before a test starts a cluster.
os.environ["RAY_AUTH_MODE"] = "token"

# A store makes sure that each file is on the disk, thousands of times in these tests: in memory that takes no time.
_MEMORY, _ROOM = Path("/dev/shm"), 4 << 30
if (
    "PYTEST_DEBUG_TEMPROOT" not in os.environ
    and os.access(_MEMORY, os.W_OK)
    and not os.statvfs(_MEMORY).f_flag & os.ST_NOEXEC
    and min(shutil.disk_usage(_MEMORY).free, os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")) > _ROOM
):
    os.environ["PYTEST_DEBUG_TEMPROOT"] = str(_MEMORY)  # where pytest makes the folders of tests

# What takes longest comes first, so that no process is left with it when the others are done (with xdist's
# --no-loadscope-reorder). The rest is in any order.
_LONGEST = (
    "test_failures",
    "test_remote_run",
    "test_submit",
    "test_readme_commands",
    "test_placement",
    "test_many_workers",
    "test_executor",
    "test_end_to_end",
    "test_costs",
    "test_lock",
    "test_comparison",
    "test_check",
    "test_remote_store",
    "test_adding",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))
