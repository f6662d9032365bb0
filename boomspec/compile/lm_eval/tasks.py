"""Find lm-eval tasks and read them from YAML files, without importing lm-eval, which takes many seconds.

    name + folder --read_task--> TaskDefinition: one SingleTask for each task that lm-eval runs for that name, its files

Includes are merged, and what a group sets for its members is, as lm-eval does. Every field keeps the file that says it,
because relative paths start there. Where a name is defined twice the first file counts, as it does for lm-eval.
"""

import ast
import importlib.util
import json
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cache, cached_property
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from boomspec.core.errors import BoomspecError
from boomspec.core.files import write_atomically
from boomspec.core.identity import digest, file_digest
from boomspec.core.machine import install_line

# Loaders of the datasets library for files, which are not the name of a data set.
LOADERS = {"json", "csv", "parquet", "text", "arrow", "pandas", "xml", "webdataset", "imagefolder", "audiofolder"}
MISSING = "missing include"  # a field of a task that includes a file which is not there
Config = dict[str, tuple[Any, Path]]  # by field: its value, and the file that says it
_PACKAGE = ["lm_eval", "tasks"]
_OF_GROUPS = {"group", "group_alias", "task", "aggregate_metric_list", "metadata", "include"}  # not for the members
# A key at the start of a line, its value, and the lines below it that are a list or the rest of one.
_FIELD = re.compile(
    r"^[\"']?(task|group|tag|include)[\"']?[ \t]*:[ \t]*(\[[^\]]*|[^\n]*(?:\n[ \t]*-[ \t]*[^\n]+)*)", re.MULTILINE
)
_WORD, _PATH = re.compile(r"[\"']?(\w[^\s\"'#,]*)"), re.compile(r"[\"']?([^\s\"'#]+)")
_ITEM = re.compile(r"\n[ \t]*-[ \t]*[\"']?(\w[^\s\"'#,]*)")


def installed_package() -> Path | None:
    found = importlib.util.find_spec("lm_eval")
    return Path(found.submodule_search_locations[0]) if found and found.submodule_search_locations else None


def stock_folder() -> Path:
    """The tasks of the installed lm-eval. Raises BoomspecError where it is not installed."""
    if (package := installed_package()) is None:
        raise BoomspecError("lm-eval is not installed, so its tasks are not known", hint=install_line("run"))
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
    with suppress(OSError, ValueError, TypeError):
        if memory is not None:
            return Index(**json.loads(memory.read_text(encoding="utf-8")))
    index, known = Index(), dict[Path, list[str]]()
    left_out = {"__pycache__", ".ipynb_checkpoints"}
    for path in sorted((p for p in root.rglob("*.yaml") if not left_out & {*p.parts}), key=lambda p: p.as_posix()):
        name, fields = path.relative_to(root).as_posix(), _fields(path)
        for key, value in fields:
            if key in ("task", "group") and (word := _WORD.match(value)):
                index.defined.setdefault(word[1], name)
        for tag in _tags(path, fields, known):
            index.tagged.setdefault(tag, []).append(name)
    with suppress(OSError):  # a home that cannot be written costs time, nothing else
        if memory is not None:
            memory.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(memory, json.dumps(asdict(index)))
    return index


def _memory(root: Path) -> Path | None:
    """Where the index is kept; None for a folder that may change under the same version."""
    try:
        installed = metadata.distribution("lm_eval")
    except metadata.PackageNotFoundError:
        return None
    record = installed.read_text("RECORD") or ""
    # Not a checkout that is installed in place.
    if "lm_eval/tasks/" not in record or Path(str(installed.locate_file("lm_eval/tasks"))) != root:
        return None
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    return caches / "boomspec" / f"lm-eval-tasks-{digest([str(root), installed.version, record])[:16]}.json"


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


class Function(str):
    """`module.name`, as `!function` names it, to be looked for beside the YAML file."""

    folder: Path | None = None  # of that file

    @property
    def module(self) -> Path | None:
        """The file that it comes from; None where it comes from an installed package."""
        if self.folder is None:
            return None
        path = (self.folder / (self.rpartition(".")[0].replace(".", "/") + ".py")).resolve()
        return path if path.is_file() else None


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # chosen when it runs
    """YAML in which `!function` stays text."""


_Loader.add_constructor("!function", lambda loader, node: Function(loader.construct_scalar(node)))


def texts(value: Any) -> Iterator[str]:
    """Every text in a part of a task's YAML."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list | tuple):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from texts(inner)


def functions(value: Any) -> Iterator[Function]:
    return (text for text in texts(value) if isinstance(text, Function))


class SingleTask(NamedTuple):
    """One task that lm-eval runs. `fields`: what its files say; what they leave out is lm-eval's default."""

    name: str  # as lm-eval calls it
    fields: Config

    def get(self, name: str, default: Any = None) -> Any:
        return self.fields[name][0] if name in self.fields else default

    def mapping(self, name: str) -> dict[str, Any]:
        """The value of a field that should be a mapping; empty where it is none."""
        found = self.get(name)
        return found if isinstance(found, dict) else {}

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


class TaskDefinition(NamedTuple):
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
    versions, datasets, metrics = dict[str, str](), dict[str, str | None](), set[str]()
    for task in [*(SingleTask(called, config) for called, config in reader.groups.items()), *tasks]:
        if "version" in (described := task.mapping("metadata")):
            versions[task.name.rpartition("::")[2]] = str(described["version"])
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
            elif isinstance(member, dict):  # a group or a task that there is, with changes, or a new one
                own: Config = {key: (value, path) for key, value in member.items()}
                key = "group" if "group" in own else "task"
                called = str(member.get(key, ""))
                changes = shared | {field: value for field, value in own.items() if field != key}
                if called in (self.index.defined if key == "group" else self.index.names):
                    yield from self.named(called, changes, above)
                elif key == "group":
                    yield from self.group(f"{name}::{called}", own, shared, above)
                else:
                    yield SingleTask(f"{name}::{called}", changes)

    def config(self, path: Path, above: tuple[Path, ...] = ()) -> Config:
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
