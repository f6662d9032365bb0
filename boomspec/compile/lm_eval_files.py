"""The files that make up an lm-eval task, found without importing lm-eval (which takes many seconds).

A task is one YAML file; what it includes, the Python modules that its functions come from, what those import of
lm-eval's tasks, and the members of a group or tag belong to it. Where a name is defined twice, the first file counts,
as it does for lm-eval.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from boomspec.compile.lm_eval_index import Index, task_index
from boomspec.core.identity import digest, file_digest

_PACKAGE = ("lm_eval", "tasks")
# Loaders of the datasets library for files that lie elsewhere: not the name of a data set.
LOADERS = {"json", "csv", "parquet", "text", "arrow", "pandas", "xml", "webdataset", "imagefolder", "audiofolder"}


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML with lm-eval's `!function module.name`, which stays the text that it is."""


class Function(str):
    """`module.name`, to be looked for beside the YAML file."""

    folder: Path | None = None  # of that file

    @property
    def module(self) -> Path | None:
        """The file that it comes from; None where it comes from an installed package."""
        if self.folder is None:
            return None
        path = (self.folder / (self.rpartition(".")[0].replace(".", "/") + ".py")).resolve()
        return path if path.is_file() else None


def read_yaml(path: Path) -> dict[str, Any]:
    """A task's YAML file by itself, without what it includes; empty where it is none: lm-eval passes over it, too."""
    try:
        own = yaml.load(path.read_bytes(), Loader=_Loader)
    except (OSError, yaml.YAMLError):
        return {}
    if not isinstance(own, dict):
        return {}
    for function in functions(own):
        function.folder = path.parent
    return own


def functions(value: Any) -> Iterator[Function]:
    """The functions that a part of a task's YAML names."""
    if isinstance(value, Function):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from functions(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from functions(inner)


_Loader.add_constructor("!function", lambda loader, node: Function(loader.construct_scalar(node)))


@dataclass(frozen=True)
class TaskFiles:
    """What an lm-eval task, group or tag consists of."""

    files: tuple[Path, ...]  # sorted
    versions: dict[str, str]  # of its tasks, by name, where they say one
    datasets: dict[str, str | None]  # the data sets that they name, each with the revision named there
    outside: tuple[Path, ...] = ()  # what they include or take functions from, and does not lie in the folder
    metrics: tuple[str, ...] = ()  # that lm-eval looks up by name

    def digest(self, root: Path) -> str:
        """sha256 over the files and their places below `root`."""
        return digest({path.relative_to(root).as_posix(): file_digest(path) for path in self.files})


def task_files(name: str, root: Path) -> TaskFiles:
    """Everything that the task, group or tag `name` of the folder `root` consists of."""
    walk = _Walk(root, task_index(root))
    walk.name(name)
    inside = {path for path in walk.files if path.resolve().is_relative_to(root.resolve())}
    return TaskFiles(
        tuple(sorted(inside)),
        dict(sorted(walk.versions.items())),
        dict(sorted(walk.datasets.items())),
        tuple(sorted(walk.files - inside)),
        tuple(sorted(walk.metrics)),
    )


@dataclass
class _Walk:
    root: Path
    index: Index
    files: set[Path] = field(default_factory=set)
    names: set[str] = field(default_factory=set)
    versions: dict[str, str] = field(default_factory=dict)
    datasets: dict[str, str | None] = field(default_factory=dict)
    metrics: set[str] = field(default_factory=set)

    def name(self, name: str) -> None:
        if name in self.names:
            return
        self.names.add(name)
        if name in self.index.defined:
            self._definition(self.root / self.index.defined[name])
        else:
            for path in self.index.tagged.get(name, ()):
                self._definition(self.root / path)

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
        if not config.get("process_results"):  # else they are names for what that returns
            metrics = config.get("metric_list")
            named = [m.get("metric") for m in metrics if isinstance(m, dict)] if isinstance(metrics, list) else []
            fetched = {str(m["metric"]) for m in metrics or () if isinstance(m, dict) and m.get("hf_evaluate") is True}
            self.metrics |= {name for name in named if type(name) is str} | {f"evaluate/{name}" for name in fetched}
        dataset, options = config.get("dataset_path"), config.get("dataset_kwargs")
        if isinstance(dataset, str) and dataset not in LOADERS:
            revision = options.get("revision") if isinstance(options, dict) else None
            self.datasets[dataset] = str(revision) if revision else self.datasets.get(dataset)

    def _config(self, path: Path) -> dict[str, Any]:
        """A YAML file merged with what it includes; both are added to the files."""
        self.files.add(path)
        own = read_yaml(path)
        for function in functions(own):
            if (module := function.module) is not None:
                self._module(module)
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
        if path in self.files or not path.is_file():
            return  # a module of an installed package
        self.files.add(path)
        for module in imported(path):
            self._module(module if module.is_absolute() else self.root / module)


def imported(path: Path) -> Iterator[Path]:
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
