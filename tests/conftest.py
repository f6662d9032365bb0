"""What every test runs under: one thread for each process (two on a busy machine can stall OpenMP), no model hub."""

import os

import pytest

# Before torch or transformers is imported, by a test or by a process that a test starts.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Ray reads it when it is imported, which may be long before a test starts a cluster.
os.environ["RAY_AUTH_MODE"] = "token"

# What takes longest comes first, so that no process is left with it when the others are done (with xdist's
# --no-loadscope-reorder). The rest is in any order.
_LONGEST = (
    "test_failures",
    "test_end_to_end",
    "test_many_workers",
    "test_remote_run",
    "test_executor",
    "test_submit",
    "test_readme_commands",
    "test_remote_store",
    "test_costs",
    "test_verify",
    "test_placement",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))
