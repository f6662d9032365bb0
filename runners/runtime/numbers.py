"""The numbers of artifacts, to read from a folder of this machine: without the models that lie beside them."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from boomspec.core.files import write_atomically
from boomspec.core.tasks import KINDS
from boomspec.store import Store

_PARALLEL = 16


def fetch_numbers(store: Store, tasks: Iterable[tuple[str, str]]) -> dict[tuple[str, str], Path]:
    """For each of these artifacts, which the store has, a folder with everything but a model."""
    tasks = list(tasks)
    beside_models = [task for task in tasks if store.bucket is not None and KINDS[task[0]].numbers]
    others = [task for task in tasks if task not in set(beside_models)]
    store.fetch_all(others)
    with ThreadPoolExecutor(_PARALLEL) as pool:
        found = dict(
            zip(beside_models, pool.map(lambda task: _without_model(store, *task), beside_models), strict=True)
        )
    return found | {task: store.fetch(*task) for task in others}


def _without_model(store: Store, kind: str, task_id: str) -> Path:
    folder = store.root / "cache" / "numbers" / task_id
    folder.mkdir(parents=True, exist_ok=True)
    for name in KINDS[kind].numbers:
        with suppress(FileNotFoundError):  # a teacher's training has no similarity
            write_atomically(folder / name, store.read(kind, task_id, name).decode("utf-8"))
    return folder
