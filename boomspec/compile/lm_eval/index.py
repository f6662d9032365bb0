"""Find which lm-eval tasks there are, and in which files, by reading YAML files without importing lm-eval."""

from __future__ import annotations

import importlib.util
import json
import os
import re
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cache, cached_property
from importlib import metadata
from pathlib import Path

from boomspec.core.errors import BoomspecError
from boomspec.core.files import write_atomically
from boomspec.core.identity import digest

# A key at the start of a line, its value, and the lines below it that are a list or the rest of one.
_FIELD = re.compile(
    r"^[\"']?(task|group|tag|include)[\"']?[ \t]*:[ \t]*(\[[^\]]*|[^\n]*(?:\n[ \t]*-[ \t]*[^\n]+)*)", re.MULTILINE
)
_WORD = re.compile(r"[\"']?(\w[^\s\"'#,]*)")
_PATH = re.compile(r"[\"']?([^\s\"'#]+)")
_ITEM = re.compile(r"\n[ \t]*-[ \t]*[\"']?(\w[^\s\"'#,]*)")


def installed_package() -> Path | None:
    """The folder of the installed lm-eval."""
    found = importlib.util.find_spec("lm_eval")
    return Path(found.submodule_search_locations[0]) if found and found.submodule_search_locations else None


def stock_folder() -> Path:
    """The tasks of the installed lm-eval. Raises BoomspecError where it is not installed."""
    if (package := installed_package()) is None:
        raise BoomspecError("lm-eval is not installed, so its tasks are not known", hint="pip install 'boomspec[run]'")
    return package / "tasks"


@dataclass
class Index:
    """YAML files, as paths below the folder, by the names that they define."""

    defined: dict[str, str] = field(default_factory=dict)  # tasks and groups
    tagged: dict[str, list[str]] = field(default_factory=dict)

    @cached_property
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
    tags: dict[Path, list[str]] = {}
    left_out = {"__pycache__", ".ipynb_checkpoints"}
    for path in sorted((p for p in root.rglob("*.yaml") if not left_out & {*p.parts}), key=lambda p: p.as_posix()):
        name = path.relative_to(root).as_posix()
        fields = _fields(path)
        for key, value in fields:
            if key in ("task", "group") and (word := _WORD.match(value)):
                index.defined.setdefault(word[1], name)
        for tag in _tags(path, fields, tags):
            index.tagged.setdefault(tag, []).append(name)
    return index


def _fields(path: Path) -> list[tuple[str, str]]:
    try:
        return _FIELD.findall(path.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return []  # a dangling link


def _tags(path: Path, fields: list[tuple[str, str]], known: dict[Path, list[str]]) -> list[str]:
    """The tags of a file; where it names none, those of what it includes."""
    if path in known:
        return known[path]
    known[path] = []  # should it include itself
    found, include = known[path], None
    for key, value in fields:
        if key == "include" and include is None and (named := _PATH.match(value)):
            include = path.parent / named[1]
        elif key == "tag" and value.startswith("["):
            found += [name.strip(" \t\n\"'") for name in value[1:].split(",")]
        elif key == "tag":
            found += [word[1]] if (word := _WORD.match(value)) else _ITEM.findall(value)
    if not found and include is not None:
        found += _tags(include, _fields(include), known)
    return found
