"""Which lm-eval tasks there are, and in which files, by reading thousands of YAML files without importing lm-eval.

For the installed lm-eval the answer is remembered in the user's cache folder: reading it takes from one second to
seven (measured), and it changes only when another version is installed.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path

from boomspec.core.errors import BoomspecError
from boomspec.core.files import write_atomically
from boomspec.core.identity import digest

_KEY = r"^[\"']?(?:%s)[\"']?[ \t]*:"
_NAME = re.compile(_KEY % "task|group" + r"[ \t]*[\"']?(\w[^\s\"'#,]*)", re.MULTILINE)
_TAG = re.compile(_KEY % "tag" + r"[ \t]*[\"']?(\w[^\s\"'#,]*)", re.MULTILINE)
_TAGS = re.compile(_KEY % "tag" + r"[ \t]*\n((?:[ \t]*-[ \t]*[^\n]+\n)+)", re.MULTILINE)
_TAG_LIST = re.compile(_KEY % "tag" + r"[ \t]*\[([^\]]*)\]", re.MULTILINE)
_ITEM = re.compile(r"-[ \t]*[\"']?(\w[^\s\"'#,]*)")
_INCLUDE = re.compile(_KEY % "include" + r"[ \t]*[\"']?([^\s\"'#]+)", re.MULTILINE)
_LEFT_OUT = {"__pycache__", ".ipynb_checkpoints"}


def stock_folder() -> Path:
    """The tasks of the installed lm-eval. Raises BoomspecError where it is not installed."""
    location = importlib.util.find_spec("lm_eval")
    if location is None or not location.submodule_search_locations:
        raise BoomspecError("lm-eval is not installed, so its tasks are not known", hint="pip install 'boomspec[run]'")
    return Path(location.submodule_search_locations[0]) / "tasks"


@dataclass
class Index:
    """Files, as paths below the folder, by the names that they define."""

    defined: dict[str, str] = field(default_factory=dict)  # tasks and groups
    tagged: dict[str, list[str]] = field(default_factory=dict)


@cache
def task_index(root: Path) -> Index:
    """Where names of tasks, groups and tags below `root` come from; read once in a process."""
    memory = _memory(root)
    if memory is None:
        return _read_index(root)
    with suppress(OSError, ValueError, TypeError):
        return Index(**json.loads(memory.read_text(encoding="utf-8")))
    index = _read_index(root)
    with suppress(OSError):  # a home that cannot be written costs time, nothing else
        memory.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(memory, json.dumps(asdict(index)))
    return index


def task_names(root: Path) -> set[str]:
    """Names of the tasks, groups and tags that YAML files under a folder define."""
    index = task_index(root)
    return {*index.defined, *index.tagged}


def _memory(root: Path) -> Path | None:
    """Where the index is remembered; None for a folder that may change under the same version."""
    try:
        installed = metadata.distribution("lm_eval")
        record = Path(str(installed.locate_file(""))) / f"lm_eval-{installed.version}.dist-info" / "RECORD"
        state = [str(root), installed.version, record.stat().st_mtime_ns]
    except (metadata.PackageNotFoundError, OSError):
        return None
    if Path(str(installed.locate_file("lm_eval/tasks"))) != root or not record.read_text("utf-8").count(
        "lm_eval/tasks/"
    ):
        return None  # its own folder, or a checkout that is installed in place
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    return caches / "boomspec" / f"lm-eval-tasks-{digest(state)[:16]}.json"


def _read_index(root: Path) -> Index:
    index = Index()
    templates: dict[Path, tuple[str, ...]] = {}
    for path in sorted((p for p in root.rglob("*.yaml") if not _LEFT_OUT & {*p.parts}), key=lambda p: p.as_posix()):
        text = _read(path)
        for name in _NAME.findall(text):
            index.defined.setdefault(name, path.relative_to(root).as_posix())
        for tag in _tags(path, text, templates):
            index.tagged.setdefault(tag, []).append(path.relative_to(root).as_posix())
    return index


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""  # a dangling link


def _tags(path: Path, text: str, templates: dict[Path, tuple[str, ...]]) -> tuple[str, ...]:
    """The tags of a file; where it names none, those of what it includes."""
    listed = [name.strip(" \t\n\"'") for names in _TAG_LIST.findall(text) for name in names.split(",")]
    own = (*_TAG.findall(text), *(name for block in _TAGS.findall(text) for name in _ITEM.findall(block)), *listed)
    include = _INCLUDE.search(text)
    if own or include is None:
        return own
    template = path.parent / include[1]
    if template not in templates:
        templates[template] = ()  # should it include itself
        templates[template] = _tags(template, _read(template), templates)
    return templates[template]
