"""What lm-eval makes of the YAML files of a task, group or tag: the configuration of each single task in it.

    name + folder --single_tasks--> SingleTask, one for each task that lm-eval runs for that name

Includes are merged and what a group sets for its members is, as lm-eval does, without importing it. Of each field it
is known which file says it: relative paths start there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from boomspec.compile.lm_eval_files import read_yaml
from boomspec.compile.lm_eval_index import Index, task_index

# What a group says of itself; the rest of it is handed to its members.
_OF_GROUPS = {"group", "group_alias", "task", "aggregate_metric_list", "metadata", "include"}
MISSING = "missing include"  # a field of a task that includes a file which is not there
Config = dict[str, tuple[Any, Path]]  # by field: its value, and the file that says it


@dataclass(frozen=True)
class SingleTask:
    """One task that lm-eval runs. `fields`: what its files say; what they leave out is lm-eval's default."""

    name: str  # as lm-eval calls it
    fields: Config

    def get(self, name: str, default: Any = None) -> Any:
        return self.fields[name][0] if name in self.fields else default

    def file(self, name: str) -> Path:
        """The file that says a field. Raises KeyError where none does."""
        return self.fields[name][1]

    @property
    def in_python(self) -> bool:
        """Whether it is a class: what it does is not in its files' fields."""
        return "class" in self.fields

    @property
    def output_type(self) -> str:
        return str(self.get("output_type", "generate_until"))

    @property
    def generation(self) -> dict[str, Any]:
        """How text is generated; empty where none is, or where lm-eval's defaults hold."""
        found = self.get("generation_kwargs")
        return found if self.output_type == "generate_until" and isinstance(found, dict) else {}

    def shots(self, asked: int | None) -> int:
        """How many examples stand in its prompts when a spec asks for so many (None: for none in particular)."""
        if self.output_type == "loglikelihood_rolling":
            return 0  # the text alone is measured
        own = self.get("num_fewshot")
        return asked if asked is not None else own if isinstance(own, int) else 0

    @property
    def few_shot(self) -> dict[str, Any]:
        found = self.get("fewshot_config")
        return found if isinstance(found, dict) else {}


def single_tasks(name: str, root: Path) -> tuple[SingleTask, ...]:
    """The tasks behind the task, group or tag `name` of the folder `root`, each once."""
    walk = _Walk(root, task_index(root))
    found = {task.name: task for task in walk.named(name, {}, ())}
    return tuple(found.values())


@dataclass
class _Walk:
    root: Path
    index: Index
    read: dict[Path, Config] = field(default_factory=dict)

    def named(self, name: str, more: Config, above: tuple[str, ...]) -> Iterator[SingleTask]:
        """`more`: what groups say of it. `above`: the names that led here, for a group that contains itself."""
        if name in above:
            return
        if name in self.index.defined:
            path = self.root / self.index.defined[name]
            config = self.config(path, ())
            if "group" in config:
                yield from self.group(name, config, more, (*above, name))
            elif "task" in config:
                yield _task(config | more, name)
            return
        for place in self.index.tagged.get(name, ()):
            config = self.config(self.root / place, ())
            if isinstance(own := config.get("task", (None,))[0], str):
                yield _task(config | more, own)

    def group(self, name: str, config: Config, more: Config, above: tuple[str, ...]) -> Iterator[SingleTask]:
        shared = {key: value for key, value in config.items() if key not in _OF_GROUPS} | more
        members, path = config.get("task", ((), self.root))
        for member in members if isinstance(members, list) else [members]:
            if isinstance(member, str):
                yield from self.named(member, shared, above)
            elif isinstance(member, dict):
                yield from self.member(name, {key: (value, path) for key, value in member.items()}, shared, above)

    def member(self, group: str, config: Config, shared: Config, above: tuple[str, ...]) -> Iterator[SingleTask]:
        """A member that a group writes out: a group or a task that there is, with changes, or a new one."""
        if "group" in config:
            name = str(config["group"][0])
            if name in self.index.defined:
                rest = {key: value for key, value in config.items() if key != "group"}
                yield from self.named(name, shared | rest, above)
            else:
                yield from self.group(f"{group}::{name}", config, shared, above)
            return
        name = str(config.get("task", ("",))[0])
        known = name in self.index.defined or name in self.index.tagged
        changes = {key: value for key, value in (shared | config).items() if key != "task"}
        if known:
            yield from self.named(name, changes, above)
        else:
            yield _task(changes, f"{group}::{name}")

    def config(self, path: Path, above: tuple[Path, ...]) -> Config:
        """A YAML file merged with what it includes."""
        path = path.resolve()
        if path in above:
            return {}  # lm-eval refuses a circle
        if path not in self.read:
            own = read_yaml(path)
            includes = own.pop("include", [])
            merged: Config = {}
            for include in includes if isinstance(includes, list) else [includes]:
                if (path.parent / str(include)).is_file():
                    merged |= self.config(path.parent / str(include), (*above, path))
                else:
                    merged[MISSING] = (str(include), path)
            self.read[path] = merged | {key: (value, path) for key, value in own.items()}
        return self.read[path]


def _task(config: Config, name: str) -> SingleTask:
    return SingleTask(name, config)
