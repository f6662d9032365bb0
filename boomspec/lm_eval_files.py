"""The files that make up an lm-eval task, found without importing lm-eval (which takes many seconds).

A task is one YAML file; what it includes, the Python modules that its functions come from, what those import of
lm-eval's tasks, and the members of a group or tag belong to it. Where a name is defined twice, the first file counts,
as it does for lm-eval.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from boomspec.errors import BoomspecError
from boomspec.identity import digest, file_digest

_KEY = r"^[\"']?(?:%s)[\"']?[ \t]*:"
_NAME = re.compile(_KEY % "task|group" + r"[ \t]*[\"']?(\w[^\s\"'#,]*)", re.MULTILINE)
_TAG = re.compile(_KEY % "tag" + r"[ \t]*[\"']?(\w[^\s\"'#,]*)", re.MULTILINE)
_TAGS = re.compile(_KEY % "tag" + r"[ \t]*\n((?:[ \t]*-[ \t]*[^\n]+\n)+)", re.MULTILINE)
_TAG_LIST = re.compile(_KEY % "tag" + r"[ \t]*\[([^\]]*)\]", re.MULTILINE)
_ITEM = re.compile(r"-[ \t]*[\"']?(\w[^\s\"'#,]*)")
_INCLUDE = re.compile(_KEY % "include" + r"[ \t]*[\"']?([^\s\"'#]+)", re.MULTILINE)
_LEFT_OUT = {"__pycache__", ".ipynb_checkpoints"}
_PACKAGE = ("lm_eval", "tasks")
# Loaders of the datasets library for files that lie elsewhere: not the name of a data set.
_LOADERS = {"json", "csv", "parquet", "text", "arrow", "pandas", "xml", "webdataset", "imagefolder", "audiofolder"}


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML with lm-eval's `!function module.name`, which stays the text that it is."""


class _Function(str):
    """`module.name`, to be looked for beside the YAML file."""


_Loader.add_constructor("!function", lambda loader, node: _Function(loader.construct_scalar(node)))


@dataclass(frozen=True)
class TaskFiles:
    """What an lm-eval task, group or tag consists of."""

    files: tuple[Path, ...]  # sorted
    versions: dict[str, str]  # of its tasks, by name, where they say one
    datasets: dict[str, str | None]  # the data sets that they name, each with the revision named there

    def digest(self, root: Path) -> str:
        """sha256 over the files and their places below `root`."""
        return digest({path.relative_to(root).as_posix(): file_digest(path) for path in self.files})


def stock_folder() -> Path:
    """The tasks of the installed lm-eval. Raises BoomspecError where it is not installed."""
    location = importlib.util.find_spec("lm_eval")
    if location is None or not location.submodule_search_locations:
        raise BoomspecError("lm-eval is not installed, so its tasks are not known", hint="pip install 'boomspec[run]'")
    return Path(location.submodule_search_locations[0]) / "tasks"


@dataclass
class _Index:
    defined: dict[str, Path] = field(default_factory=dict)  # tasks and groups
    tagged: dict[str, list[Path]] = field(default_factory=lambda: defaultdict(list))


@cache
def task_index(root: Path) -> _Index:
    """Where names of tasks, groups and tags come from; thousands of files, read once in a process."""
    index = _Index()
    templates: dict[Path, tuple[str, ...]] = {}
    for path in sorted((p for p in root.rglob("*.yaml") if not _LEFT_OUT & {*p.parts}), key=lambda p: p.as_posix()):
        text = _read(path)
        for name in _NAME.findall(text):
            index.defined.setdefault(name, path)
        for tag in _tags(path, text, templates):
            index.tagged[tag].append(path)
    return index


def task_names(root: Path) -> set[str]:
    """Names of the tasks, groups and tags that YAML files under a folder define."""
    index = task_index(root)
    return {*index.defined, *index.tagged}


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


def task_files(name: str, root: Path) -> TaskFiles:
    """Everything that the task, group or tag `name` of the folder `root` consists of."""
    walk = _Walk(root, task_index(root))
    walk.name(name)
    return TaskFiles(
        tuple(sorted(walk.files)), dict(sorted(walk.versions.items())), dict(sorted(walk.datasets.items()))
    )


@dataclass
class _Walk:
    root: Path
    index: _Index
    files: set[Path] = field(default_factory=set)
    names: set[str] = field(default_factory=set)
    versions: dict[str, str] = field(default_factory=dict)
    datasets: dict[str, str | None] = field(default_factory=dict)

    def name(self, name: str) -> None:
        if name in self.names:
            return
        self.names.add(name)
        if name in self.index.defined:
            self._definition(self.index.defined[name])
        else:
            for path in self.index.tagged.get(name, ()):
                self._definition(path)

    def _definition(self, path: Path) -> None:
        config = self._config(path)
        members = config.get("task")
        if isinstance(members, list):
            self._members(members)
        self._task(config)

    def _members(self, members: list[Any]) -> None:
        for member in members:
            if isinstance(member, dict):
                inner = member.get("task")
                self._members(inner if isinstance(inner, list) else [inner or member.get("group")])
                self._task(member)
            elif isinstance(member, str):
                self.name(member)

    def _task(self, config: dict[str, Any]) -> None:
        metadata, names = config.get("metadata"), (config.get("task"), config.get("group"))
        if isinstance(metadata, dict) and "version" in metadata:
            name = next((name for name in names if isinstance(name, str)), None)
            self.versions |= {name: str(metadata["version"])} if name is not None else {}
        dataset, options = config.get("dataset_path"), config.get("dataset_kwargs")
        if isinstance(dataset, str) and dataset not in _LOADERS:
            revision = options.get("revision") if isinstance(options, dict) else None
            self.datasets[dataset] = str(revision) if revision else self.datasets.get(dataset)

    def _config(self, path: Path) -> dict[str, Any]:
        """A YAML file merged with what it includes; both are added to the files."""
        self.files.add(path)
        try:
            own = yaml.load(path.read_bytes(), Loader=_Loader)
        except (OSError, yaml.YAMLError):
            return {}  # lm-eval passes over it, too
        if not isinstance(own, dict):
            return {}
        for function in _functions(own):
            self._module(path.parent / (function.rpartition(".")[0].replace(".", "/") + ".py"))
        includes = own.pop("include", [])
        merged: dict[str, Any] = {}
        for include in includes if isinstance(includes, list) else [includes]:
            target = Path(path.parent / str(include)).resolve()
            if target.is_file() and target not in self.files:
                merged |= self._config(target)
            elif target.is_file():
                merged |= _Walk(self.root, self.index)._config(target)  # seen before: only its values are needed
        return merged | own

    def _module(self, path: Path) -> None:
        path = path.resolve()
        if path in self.files or not path.is_file() or not path.is_relative_to(self.root):
            return  # a module of an installed package
        self.files.add(path)
        for module in _imported(path):
            self._module(module if module.is_absolute() else self.root / module)


def _functions(value: Any) -> Iterator[_Function]:
    if isinstance(value, _Function):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _functions(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _functions(inner)


def _imported(path: Path) -> Iterator[Path]:
    """Files that a module imports of lm-eval's tasks (relative to their root), or by a relative import (absolute)."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            base = Path(*(node.module or "").split(".")) if node.module else Path()
            names = [base, *(base / alias.name for alias in node.names)]
            if node.level:
                yield from (path.parents[node.level - 1] / f"{name}.py" for name in names if name.name)
            elif base.parts[:2] == _PACKAGE:
                yield from (Path(f"{Path(*name.parts[2:])}.py") for name in names if len(name.parts) > 2)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if (parts := tuple(alias.name.split(".")))[:2] == _PACKAGE and len(parts) > 2:
                    yield Path(f"{Path(*parts[2:])}.py")
