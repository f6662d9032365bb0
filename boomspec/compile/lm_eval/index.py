"""Find which lm-eval tasks there are, and in which files, by reading YAML files without importing lm-eval."""

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


def stock_folder() -> Path:
    """The tasks of the installed lm-eval. Raises BoomspecError where it is not installed."""
    location = importlib.util.find_spec("lm_eval")
    if location is None or not location.submodule_search_locations:
        raise BoomspecError("lm-eval is not installed, so its tasks are not known", hint="pip install 'boomspec[run]'")
    return Path(location.submodule_search_locations[0]) / "tasks"


@dataclass
class Index:
    """YAML files, as paths below the folder, by the names that they define."""

    defined: dict[str, str] = field(default_factory=dict)  # tasks and groups
    tagged: dict[str, list[str]] = field(default_factory=dict)

    @property
    def names(self) -> set[str]:
        return {*self.defined, *self.tagged}


@cache
def task_index(root: Path) -> Index:
    """The tasks, groups and tags below `root`, read once in a process.

    That of the installed lm-eval is kept in the user's cache folder: reading its thousands of files takes from one
    second to seven (measured), and it changes only with the installed version.
    """
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


def _memory(root: Path) -> Path | None:
    """Where the index is kept; None for a folder that may change under the same version."""
    try:
        installed = metadata.distribution("lm_eval")
        record = Path(str(installed.locate_file(""))) / f"lm_eval-{installed.version}.dist-info" / "RECORD"
        state = [str(root), installed.version, record.stat().st_mtime_ns]
        is_copy = "lm_eval/tasks/" in record.read_text(encoding="utf-8")  # not a checkout that is installed in place
    except (metadata.PackageNotFoundError, OSError):
        return None
    if Path(str(installed.locate_file("lm_eval/tasks"))) != root or not is_copy:
        return None
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    return caches / "boomspec" / f"lm-eval-tasks-{digest(state)[:16]}.json"


def _read_index(root: Path) -> Index:
    index = Index()
    templates: dict[Path, tuple[str, ...]] = {}
    left_out = {"__pycache__", ".ipynb_checkpoints"}
    for path in sorted((p for p in root.rglob("*.yaml") if not left_out & {*p.parts}), key=lambda p: p.as_posix()):
        text = _text(path)
        for name in _NAME.findall(text):
            index.defined.setdefault(name, path.relative_to(root).as_posix())
        for tag in _tags(path, text, templates):
            index.tagged.setdefault(tag, []).append(path.relative_to(root).as_posix())
    return index


def _text(path: Path) -> str:
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
        templates[template] = _tags(template, _text(template), templates)
    return templates[template]
