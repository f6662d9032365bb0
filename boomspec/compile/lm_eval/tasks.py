"""Read lm-eval tasks from YAML files: what they say, and which files they consist of.

    name + folder --read_task--> TaskDefinition: one SingleTask for each task that lm-eval runs for that name, its files

Includes are merged, and what a group sets for its members is, as lm-eval does. Every field keeps the file that says it,
because relative paths start there. Where a name is defined twice the first file counts, as it does for lm-eval.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from boomspec.compile.lm_eval.index import Index, task_index
from boomspec.core.identity import digest, file_digest

# Loaders of the datasets library for files, which are not the name of a data set.
LOADERS = {"json", "csv", "parquet", "text", "arrow", "pandas", "xml", "webdataset", "imagefolder", "audiofolder"}
MISSING = "missing include"  # a field of a task that includes a file which is not there
Config = dict[str, tuple[Any, Path]]  # by field: its value, and the file that says it

_PACKAGE = ["lm_eval", "tasks"]
_OF_GROUPS = {"group", "group_alias", "task", "aggregate_metric_list", "metadata", "include"}  # not for the members


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # chosen when it runs
    """YAML with lm-eval's `!function module.name`, which stays text."""


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


_Loader.add_constructor("!function", lambda loader, node: Function(loader.construct_scalar(node)))


def texts(value: Any) -> Iterator[str]:
    """Every text in a part of a task's YAML."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list | tuple):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from texts(inner)


def functions(value: Any) -> Iterator[Function]:
    """The functions that a part of a task's YAML names."""
    return (text for text in texts(value) if isinstance(text, Function))


@dataclass(frozen=True)
class SingleTask:
    """One task that lm-eval runs. `fields`: what its files say; what they leave out is lm-eval's default."""

    name: str  # as lm-eval calls it
    fields: Config

    def get(self, name: str, default: Any = None) -> Any:
        return self.fields[name][0] if name in self.fields else default

    def mapping(self, name: str) -> dict[str, Any]:
        """The value of a field that should be a mapping; empty where it is none."""
        found = self.get(name)
        return found if isinstance(found, dict) else {}

    def file(self, name: str) -> Path:
        """The file that says a field. Raises KeyError where none does."""
        return self.fields[name][1]

    @property
    def values(self) -> list[Any]:
        return [value for value, _ in self.fields.values()]

    @property
    def in_python(self) -> bool:
        """Whether it is a class: then its files' fields do not say what it does."""
        return "class" in self.fields

    @property
    def output_type(self) -> str:
        return str(self.get("output_type", "generate_until"))

    @property
    def generation(self) -> dict[str, Any]:
        """How text is generated; empty where none is, or where lm-eval's defaults hold."""
        return self.mapping("generation_kwargs") if self.output_type == "generate_until" else {}

    @property
    def few_shot(self) -> dict[str, Any]:
        return self.mapping("fewshot_config")

    def shots(self, wanted: int | None) -> int:
        """The number of examples in its prompts where a spec wants `wanted` (None: as the task says)."""
        if self.output_type == "loglikelihood_rolling":
            return 0  # the text alone is measured
        own = self.get("num_fewshot")
        return wanted if wanted is not None else own if isinstance(own, int) else 0


@dataclass(frozen=True)
class TaskDefinition:
    """What a task, group or tag consists of."""

    tasks: tuple[SingleTask, ...]  # each once
    files: tuple[Path, ...]  # sorted: YAML, and Python that it takes functions from, with what that imports of tasks
    outside: tuple[Path, ...]  # such files that do not lie in the folder of the tasks
    versions: dict[str, str]  # of tasks and groups, by name, where they say one
    datasets: dict[str, str | None]  # the data sets that they name, each with the revision named there
    metrics: tuple[str, ...]  # that lm-eval looks up by name

    def digest(self, root: Path) -> str:
        """sha256 over the files and their places below `root`."""
        return digest({path.relative_to(root.resolve()).as_posix(): file_digest(path) for path in self.files})


def read_task(name: str, root: Path) -> TaskDefinition:
    """The task, group or tag `name` of the folder `root`."""
    reader = _Reader(root, task_index(root))
    tasks = tuple({task.name: task for task in reader.named(name, {}, ())}.values())
    files = set(reader.own)
    for function in functions(list(reader.own.values())):
        if (module := function.module) is not None:
            add_with_imports(module, root, files)
    inside = {path for path in files if path.is_relative_to(root.resolve())}
    versions: dict[str, str] = {}
    for called, config in {**reader.groups, **{task.name: task.fields for task in tasks}}.items():
        described = config.get("metadata", (None,))[0]
        if isinstance(described, dict) and "version" in described:
            versions[called.rpartition("::")[2]] = str(described["version"])
    datasets: dict[str, str | None] = {}
    metrics: set[str] = set()
    for task in tasks:
        if isinstance(path := task.get("dataset_path"), str) and path not in LOADERS:
            revision = task.mapping("dataset_kwargs").get("revision")
            datasets[path] = str(revision) if revision else datasets.get(path)
        listed = task.get("metric_list")
        if task.get("process_results") or not isinstance(listed, list):
            continue  # names for what process_results returns
        for metric in (item for item in listed if isinstance(item, dict)):
            if type(metric.get("metric")) is str:  # and no function
                metrics.add(metric["metric"])
            if metric.get("hf_evaluate") is True:
                metrics.add(f"evaluate/{metric.get('metric')}")
    return TaskDefinition(
        tasks=tasks,
        files=tuple(sorted(inside)),
        outside=tuple(sorted(files - inside)),
        versions=dict(sorted(versions.items())),
        datasets=dict(sorted(datasets.items())),
        metrics=tuple(sorted(metrics)),
    )


@dataclass
class _Reader:
    """Walks from a name to single tasks, and keeps what it has read."""

    root: Path
    index: Index
    own: dict[Path, dict[str, Any]] = field(default_factory=dict)  # YAML files as they are, by resolved path
    merged: dict[Path, Config] = field(default_factory=dict)  # with what they include
    groups: dict[str, Config] = field(default_factory=dict)

    def named(self, name: str, more: Config, above: tuple[str, ...]) -> Iterator[SingleTask]:
        """`more`: what groups say of it. `above`: the names that led here, for a group that contains itself."""
        if name in above:
            return
        if name in self.index.defined:
            config = self.config(self.root / self.index.defined[name])
            if "group" in config:
                yield from self.group(name, config, more, (*above, name))
            elif "task" in config:
                yield SingleTask(name, config | more)
            return
        for place in self.index.tagged.get(name, ()):
            config = self.config(self.root / place)
            if isinstance(own := config.get("task", (None,))[0], str):
                yield SingleTask(own, config | more)

    def group(self, name: str, config: Config, more: Config, above: tuple[str, ...]) -> Iterator[SingleTask]:
        self.groups[name] = config
        shared = {key: value for key, value in config.items() if key not in _OF_GROUPS} | more
        members, path = config.get("task", ((), self.root))
        for member in members if isinstance(members, list) else [members]:
            if isinstance(member, str):
                yield from self.named(member, shared, above)
            elif isinstance(member, dict):
                yield from self.member(name, {key: (value, path) for key, value in member.items()}, shared, above)

    def member(self, group: str, config: Config, shared: Config, above: tuple[str, ...]) -> Iterator[SingleTask]:
        """A member that a group writes out: a group or a task that there is, with changes, or a new one."""
        key = "group" if "group" in config else "task"
        name = str(config.get(key, ("",))[0])
        changes = shared | {field: value for field, value in config.items() if field != key}
        if name in (self.index.defined if key == "group" else self.index.names):
            yield from self.named(name, changes, above)
        elif key == "group":
            yield from self.group(f"{group}::{name}", config, shared, above)
        else:
            yield SingleTask(f"{group}::{name}", changes)

    def config(self, path: Path, above: tuple[Path, ...] = ()) -> Config:
        """A YAML file merged with what it includes."""
        path = path.resolve()
        if path in above:
            return {}  # lm-eval refuses a circle
        if path not in self.merged:
            own = {}
            with suppress(OSError, yaml.YAMLError):  # lm-eval passes over a file that cannot be read, too
                own = yaml.load(path.read_bytes(), Loader=_Loader)
            own = self.own[path] = own if isinstance(own, dict) else {}
            for function in functions(own):
                function.folder = path.parent
            includes = own.get("include", [])
            merged: Config = {}
            for include in includes if isinstance(includes, list) else [includes]:
                if (path.parent / str(include)).is_file():
                    merged |= self.config(path.parent / str(include), (*above, path))
                else:
                    merged[MISSING] = (str(include), path)
            self.merged[path] = merged | {key: (value, path) for key, value in own.items() if key != "include"}
        return self.merged[path]


def add_with_imports(module: Path, root: Path, found: set[Path]) -> None:
    """Add a Python file to `found`, and what it imports by relative imports or of lm-eval's tasks below `root`."""
    module = module.resolve()
    if module in found or not module.is_file():
        return  # also the module of an installed package
    found.add(module)
    with suppress(SyntaxError, ValueError):
        for other in _imported(module):
            add_with_imports(root / other, root, found)


def _imported(path: Path) -> Iterator[Path]:
    """Files that a module imports: of lm-eval's tasks relative to their root, by relative imports absolute."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(f"{node.module or ''}.{alias.name}" for alias in node.names)]
            start = path.parents[node.level - 1] if node.level else None
        elif isinstance(node, ast.Import):
            names, start = [alias.name for alias in node.names], None
        else:
            continue
        for parts in (list(filter(None, name.split("."))) for name in names):
            if start is not None and parts:
                yield start.joinpath(*parts[:-1], f"{parts[-1]}.py")
            elif start is None and parts[:2] == _PACKAGE and len(parts) > 2:
                yield Path(*parts[2:-1], f"{parts[-1]}.py")
