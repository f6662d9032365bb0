"""Where lm-eval tasks come from: found by name without importing lm-eval, identified by what they are."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
from functools import cache
from pathlib import Path

from boomspec.errors import BoomspecError, did_you_mean
from boomspec.graph import Source
from boomspec.identity import digest, file_digest
from boomspec.sources import resolve_path
from boomspec.spec import SpecFile


def task_source(file: SpecFile, task: str, index: int) -> Source:
    """Where an lm-eval task comes from: the spec's own folder, or the installed lm-eval.

    Raises SpecError now, before anything is trained, when no such task exists.
    """
    assert file.spec.evaluate is not None
    own: set[str] = set()
    if file.spec.evaluate.tasks_folder is not None:
        folder = resolve_path(file, file.spec.evaluate.tasks_folder)
        own = task_names(folder)
        if task in own:
            contents = {
                path.relative_to(folder).as_posix(): file_digest(path)
                for path in sorted(folder.rglob("*"))
                if path.is_file() and "__pycache__" not in path.parts
            }
            return Source("lm_eval_tasks", {"folder": digest(contents)}, {"folder": str(folder)})
    stock = _stock_task_names()
    if task not in stock:
        hint = did_you_mean(task, [*own, *stock]) or "list them with: lm-eval ls tasks"
        raise file.error(file.problem(("evaluate", "tasks", index), f"lm-eval knows no task '{task}'", hint))
    return Source("lm_eval_tasks", {"lm_eval": importlib.metadata.version("lm-eval")}, {})


@cache
def _stock_task_names() -> set[str]:
    """Of the installed lm-eval: thousands of files, read once in a process."""
    location = importlib.util.find_spec("lm_eval")
    if location is None or not location.submodule_search_locations:
        raise BoomspecError("lm-eval is not installed, so its tasks are not known", hint="pip install 'boomspec[run]'")
    return task_names(Path(location.submodule_search_locations[0]) / "tasks")


_NAME = re.compile(r"^(?:task|group|tag)[ \t]*:[ \t]*[\"']?(\w[\w.:/+-]*)", re.MULTILINE)
_TAGS = re.compile(r"^tag[ \t]*:[ \t]*\n((?:[ \t]*-[ \t]*[^\n]+\n)+)", re.MULTILINE)
_ITEM = re.compile(r"-[ \t]*[\"']?(\w[\w.:/+-]*)")


def task_names(folder: Path) -> set[str]:
    """Names of the tasks, groups and tags that YAML files under a folder define, without importing lm-eval."""
    names: set[str] = set()
    for path in folder.rglob("*.yaml"):
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue  # a dangling link
        names.update(_NAME.findall(text))
        for tags in _TAGS.findall(text):
            names.update(_ITEM.findall(tags))
    return names
