"""Where the lm-eval tasks of a spec come from: its own folder, or the installed lm-eval."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from boomspec.compile.lm_eval_chance import bootstraps, draws
from boomspec.compile.lm_eval_configs import SingleTask, single_tasks
from boomspec.compile.lm_eval_data import DataError, local_data
from boomspec.compile.lm_eval_files import task_files
from boomspec.compile.lm_eval_index import stock_folder, task_names
from boomspec.compile.place_names import shown_path
from boomspec.compile.places import resolve_path
from boomspec.core.errors import did_you_mean
from boomspec.core.graph import OUTSIDE, Source
from boomspec.core.identity import folder_digest
from boomspec.core.task_data import ASKS, DATA, TASKS, digests
from boomspec.spec.sections.evaluation import TaskSpec
from boomspec.spec.spec_file import SpecFile

_FOLDER = ("evaluate", "tasks_folder")


def task_source(file: SpecFile, task: str, index: int) -> Source:
    """Where an lm-eval task comes from: the spec's own folder, or the installed lm-eval.

    Raises SpecError now, before anything is trained, when no such task exists.
    """
    return file.known(("task", index), ("evaluate",), lambda: _task_source(file, task, index))


@dataclass(frozen=True)
class Chance:
    """What of a task's numbers depends on chance: the numbers themselves, and how exact their standard errors are."""

    draws: bool
    bootstraps: bool


def task_chance(file: SpecFile, task: TaskSpec) -> Chance:
    """Whether a seed, and the number of resamples, can change what a task that `task_source` knows measures."""
    folder = _folder_of(file, task.task)
    found = _singles(file, task.task, folder)
    key = ("chance", folder, task.task, task.num_fewshot)
    return file.once(
        key,
        lambda: Chance(
            # Nothing found: what lm-eval will run is not known.
            draws=not found or any(draws(one, folder, num_fewshot=task.num_fewshot) for one in found),
            bootstraps=not found or any(bootstraps(one) for one in found),
        ),
    )


def _folder_of(file: SpecFile, task: str) -> Path:
    """The folder that a task is in: the spec's own, or lm-eval's."""
    assert file.spec.evaluate is not None
    if file.spec.evaluate.tasks_folder is not None:
        folder = resolve_path(file, _FOLDER, file.spec.evaluate.tasks_folder)
        if task in file.once(("task names", folder), lambda: task_names(folder)):
            return folder
    return stock_folder()


def _task_source(file: SpecFile, task: str, index: int) -> Source:
    assert file.spec.evaluate is not None
    own: set[str] = set()
    if file.spec.evaluate.tasks_folder is not None:
        folder = resolve_path(file, _FOLDER, file.spec.evaluate.tasks_folder)
        own = file.once(("task names", folder), lambda: task_names(folder))
        if task in own:
            _check_inside(file, task, index, folder)
            _check_metrics(file, task, index, folder)
            name, own_folder = shown_path(file.spec.evaluate.tasks_folder), file.folder(_FOLDER).resolve()
            location = {"folder": str(folder), "name": name, OUTSIDE: not folder.is_relative_to(own_folder)}
            identity, places = _data(file, task, index, folder)
            return Source("lm_eval_tasks", {"folder": folder_digest(folder), **identity}, {**location, **places})
    stock = task_names(stock_folder())
    if task not in stock:
        hint = did_you_mean(task, [*own, *stock]) or "list them with: lm-eval ls tasks"
        raise file.error(file.problem(("evaluate", "tasks", index), f"lm-eval knows no task '{task}'", hint))
    _check_metrics(file, task, index, stock_folder())
    identity, places = _data(file, task, index, stock_folder())
    return Source("lm_eval_tasks", {"lm_eval": importlib.metadata.version("lm-eval"), **identity}, places)


def _data(file: SpecFile, task: str, index: int, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the data that a task names in files adds to the identity and to the location of its source."""
    try:
        found = local_data(_singles(file, task, folder), folder, own=folder != stock_folder())
    except DataError as error:
        raise file.error(file.problem(("evaluate", "tasks", index), error.message, error.hint)) from error
    identity = [file.once(("data", path), partial(digests, path)) for path in found.outside]
    places = [{"path": str(path), "is_file": path.is_file()} for path in found.outside]
    if not found.asks:
        return {}, {}
    # Two tasks that read the same are told apart: each needs paths of its own.
    named = {TASKS: sorted(found.asks)}
    return {**named, **({DATA: identity} if identity else {})}, {ASKS: found.asks, **({DATA: places} if places else {})}


def singles_of(file: SpecFile, task: str) -> tuple[SingleTask, ...]:
    """The single tasks behind a task, group or tag of the spec."""
    return _singles(file, task, _folder_of(file, task))


def _singles(file: SpecFile, task: str, folder: Path) -> tuple[SingleTask, ...]:
    return file.once(("single tasks", folder, task), lambda: single_tasks(task, folder))


def _check_inside(file: SpecFile, task: str, index: int, folder: Path) -> None:
    """Raise SpecError where a task takes templates or functions from elsewhere: only its folder has a digest."""
    stock = importlib.util.find_spec("lm_eval")
    known = Path(stock.origin).parent / "tasks" if stock is not None and stock.origin is not None else None
    for path in task_files(task, folder).outside:
        if known is None or not path.resolve().is_relative_to(known.resolve()):
            message = f"'{task}' of {folder} takes something from outside of that folder: {path}"
            hint = "put it into the folder: what is in it is part of what identifies a result"
            raise file.error(file.problem(("evaluate", "tasks", index), message, hint))


def _check_metrics(file: SpecFile, task: str, index: int, folder: Path) -> None:
    """Raise SpecError where lm-eval would fetch the code of a metric from the hub and run it."""
    known = _metrics()
    unknown = [name for name in task_files(task, folder).metrics if name not in known]
    if known and unknown:
        message = f"lm-eval task '{task}': its metric '{unknown[0].removeprefix('evaluate/')}' is code of the hub"
        hint = "code that nobody has pinned is not run; lm-eval's own metrics are: " + ", ".join(sorted(known))
        raise file.error(file.problem(("evaluate", "tasks", index), message, hint))


@cache
def _metrics() -> frozenset[str]:
    """The metrics that lm-eval has itself, read from its source; empty where they cannot be read."""
    found = importlib.util.find_spec("lm_eval")
    source = Path(found.origin).parent / "api" / "metrics.py" if found is not None and found.origin else None
    if source is None or not source.is_file():
        return frozenset()
    return frozenset(re.findall(r"metric=\"([\w.-]+)\"", source.read_text(encoding="utf-8")))
