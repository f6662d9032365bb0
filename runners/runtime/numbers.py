"""Fetch the numbers of artifacts without the models that lie beside them."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from boomspec.core.tasks import KINDS
from boomspec.store import Store

_PARALLEL = 16


def fetch_numbers(store: Store, tasks: Iterable[tuple[str, str]]) -> dict[tuple[str, str], Path]:
    """For each of these artifacts, which the store has, a folder on this machine with everything but a model."""
    tasks = list(tasks)
    beside_models = [task for task in tasks if KINDS[task[0]].numbers]
    with ThreadPoolExecutor(_PARALLEL) as pool:
        folders = pool.map(lambda task: store.fetch_files(task, KINDS[task[0]].numbers), beside_models)
        found = dict(zip(beside_models, folders, strict=True))
    return found | store.fetch_all(task for task in tasks if task not in found)
