"""Where the lm-eval tasks of a spec come from: its own folder, or the installed lm-eval."""

from __future__ import annotations

import importlib.metadata

from boomspec.compiling.lm_eval_index import stock_folder, task_names
from boomspec.compiling.place_names import shown_path
from boomspec.compiling.sources import resolve_path
from boomspec.errors import did_you_mean
from boomspec.graph import Source
from boomspec.identity import folder_digest
from boomspec.language.spec import SpecFile

_FOLDER = ("evaluate", "tasks_folder")


def task_source(file: SpecFile, task: str, index: int) -> Source:
    """Where an lm-eval task comes from: the spec's own folder, or the installed lm-eval.

    Raises SpecError now, before anything is trained, when no such task exists.
    """
    return file.known(("task", index), ("evaluate",), lambda: _task_source(file, task, index))


def _task_source(file: SpecFile, task: str, index: int) -> Source:
    assert file.spec.evaluate is not None
    own: set[str] = set()
    if file.spec.evaluate.tasks_folder is not None:
        folder = resolve_path(file, _FOLDER, file.spec.evaluate.tasks_folder)
        own = file.once(("task names", folder), lambda: task_names(folder))
        if task in own:
            location = {"folder": str(folder), "name": shown_path(file.spec.evaluate.tasks_folder)}
            return Source("lm_eval_tasks", {"folder": folder_digest(folder)}, location)
    stock = task_names(stock_folder())
    if task not in stock:
        hint = did_you_mean(task, [*own, *stock]) or "list them with: lm-eval ls tasks"
        raise file.error(file.problem(("evaluate", "tasks", index), f"lm-eval knows no task '{task}'", hint))
    return Source("lm_eval_tasks", {"lm_eval": importlib.metadata.version("lm-eval")}, {})
