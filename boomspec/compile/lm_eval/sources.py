"""The lm-eval tasks of a spec: the folder that each comes from, what identifies it, and what a seed can change of it.

A task is looked for in the spec's own `tasks_folder` first, and then in the installed lm-eval.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
from functools import cache, partial
from pathlib import Path
from typing import Any

from boomspec.compile.lm_eval.data import local_data
from boomspec.compile.lm_eval.index import stock_folder, task_index
from boomspec.compile.lm_eval.randomness import Chance, chance_of
from boomspec.compile.lm_eval.tasks import TaskDefinition, read_task
from boomspec.compile.places import errors_at, resolve_path, shown_path
from boomspec.core.errors import SpecError, did_you_mean
from boomspec.core.graph import OUTSIDE, Source
from boomspec.core.identity import folder_digest
from boomspec.core.task_data import ASKS, DATA, TASKS, digests
from boomspec.spec.sections.evaluation import TaskSpec
from boomspec.spec.spec_file import SpecFile, memoized_for

_FOLDER = ("evaluate", "tasks_folder")


def task_chance(file: SpecFile, task: TaskSpec) -> Chance:
    """Whether a seed, and the number of resamples, can change what a task measures. It has to exist."""
    folder, tasks = _folder_of(file, task.task), definition_of(file, task.task).tasks
    key = ("chance", folder, task.task, task.num_fewshot)
    return file.once(key, lambda: chance_of(tasks, folder, num_fewshot=task.num_fewshot))


def definition_of(file: SpecFile, task: str) -> TaskDefinition:
    """What a task, group or tag of the spec consists of."""
    folder = _folder_of(file, task)
    return file.once(("task definition", folder, task), lambda: read_task(task, folder))


def _own_folder(file: SpecFile) -> Path | None:
    named = file.spec.evaluate.tasks_folder if file.spec.evaluate is not None else None
    return None if named is None else resolve_path(file, _FOLDER, named)


def _folder_of(file: SpecFile, task: str) -> Path:
    own = _own_folder(file)
    return own if own is not None and task in task_index(own).names else stock_folder()


@memoized_for("evaluate")
def task_source(file: SpecFile, task: str, index: int) -> Source:
    """The source of a task, the `index`-th of the spec. Raises SpecError for one that does not exist or may not run."""
    own, folder = _own_folder(file), _folder_of(file, task)

    def error(message: str, hint: str | None) -> SpecError:
        return file.error_at(("evaluate", "tasks", index), message, hint)

    if task not in task_index(folder).names:
        known = [*(task_index(own).names if own is not None else ()), *task_index(folder).names]
        hint = did_you_mean(task, known) or "list them with: lm-eval ls tasks"
        raise error(f"lm-eval knows no task '{task}'", hint)
    definition = definition_of(file, task)
    if folder == own and (outside := [path for path in definition.outside if not _is_stock(path)]):
        message = f"'{task}' of {folder} takes something from outside of that folder: {outside[0]}"
        raise error(message, "put it into the folder: what is in it is part of what identifies a result")
    metrics = _own_metrics()
    if unknown := [name for name in definition.metrics if metrics and name not in metrics]:
        message = f"lm-eval task '{task}': its metric '{unknown[0].removeprefix('evaluate/')}' is code of the hub"
        hint = "code that nobody has pinned is not run; lm-eval's own metrics are: " + ", ".join(sorted(metrics))
        raise error(message, hint)
    with errors_at(file, ("evaluate", "tasks", index)):
        identity, location = _data(file, definition, folder, own=folder == own)
    if folder != own:
        version = importlib.metadata.version("lm-eval")
        return Source("lm_eval_tasks", {"lm_eval": version, **identity}, location)
    assert file.spec.evaluate is not None
    place = {
        "folder": str(folder),
        "name": shown_path(str(file.spec.evaluate.tasks_folder)),
        OUTSIDE: not folder.is_relative_to(file.folder(_FOLDER).resolve()),
    }
    return Source("lm_eval_tasks", {"folder": folder_digest(folder), **identity}, {**place, **location})


def _data(
    file: SpecFile, definition: TaskDefinition, folder: Path, *, own: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the data that a task names in files adds to the identity and to the location of its source."""
    found = local_data(definition.tasks, folder, own=own)
    if not found.asks:
        return {}, {}
    # Two tasks that read the same data have different sources: each needs paths of its own.
    identity: dict[str, Any] = {TASKS: sorted(found.asks)}
    location: dict[str, Any] = {ASKS: found.asks}
    if found.outside:
        identity[DATA] = [file.once(("data", path), partial(digests, path)) for path in found.outside]
        location[DATA] = [{"path": str(path), "is_file": path.is_file()} for path in found.outside]
    return identity, location


def _is_stock(path: Path) -> bool:
    """Whether a file is one of the tasks of the installed lm-eval."""
    found = importlib.util.find_spec("lm_eval")
    return found is not None and path.resolve().is_relative_to(stock_folder().resolve())


@cache
def _own_metrics() -> frozenset[str]:
    """lm-eval's own metrics, read from its source; empty where they cannot be read. It fetches others from the hub."""
    found = importlib.util.find_spec("lm_eval")
    source = Path(found.origin).parent / "api" / "metrics.py" if found is not None and found.origin else None
    if source is None or not source.is_file():
        return frozenset()
    return frozenset(re.findall(r"metric=\"([\w.-]+)\"", source.read_text(encoding="utf-8")))
