"""Read a graph file, which `TaskGraph.write` writes. Nothing in it is trusted: every id is computed again."""

import re
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter

from boomspec.core.errors import BoomspecError, printable
from boomspec.core.execution import Execution, read_options
from boomspec.core.files import read_json
from boomspec.core.graph import NAME, SCHEMA_VERSION, Experiment, Node, Source, Task, TaskGraph
from boomspec.core.tasks import KINDS
from boomspec.core.tasks.record import Cost

_EXPERIMENTS = TypeAdapter(list[Experiment], config=ConfigDict(defer_build=True))


def read_graph(path: Path) -> TaskGraph:
    """Read a graph file. Raises BoomspecError where it cannot be read, is of another version, or was altered."""
    try:
        return graph_of_json(read_json(path), path)
    except OSError as error:
        raise BoomspecError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise BoomspecError(f"{path}: cannot be read as a compiled graph: {error}") from error


def graph_of_json(data: Any, path: Path) -> TaskGraph:
    """The inverse of `TaskGraph.to_json`, of data from the file `path`. Raises BoomspecError as `read_graph` does."""
    found = data.get("boomspec_graph") if isinstance(data, dict) else None
    if isinstance(data, dict) and found is None and "boomspec_plan" in data:
        raise BoomspecError(f"{path}: is a saved plan, not a compiled graph", hint=f"boomspec run {path} executes it")
    if found != SCHEMA_VERSION:
        message = f"{path}: graph version {found!r}, but this boomspec reads version {SCHEMA_VERSION}"
        raise BoomspecError(message, hint="compile the spec again: boomspec graph SPEC --format json")
    try:
        return _graph(data, path)
    except (KeyError, TypeError, AttributeError, ValueError) as error:  # pydantic's is a ValueError
        raise BoomspecError(f"{path}: not a compiled graph: {type(error).__name__}: {error}") from error


def _graph(data: dict[str, Any], path: Path) -> TaskGraph:
    if re.fullmatch(NAME, data["name"]) is None:
        raise BoomspecError(f"{path}: '{printable(data['name'])}' is no name for a graph: the file was altered")
    sources = {i: Source(s["kind"], s["identity"], s["location"]) for i, s in data["sources"].items()}
    nodes: dict[str, Node] = {}
    for task_id, entry in data["tasks"].items():
        node = _node(entry, path)
        late = [("needs", i) for i in node.task.inputs.values() if i not in nodes and i not in sources]
        for verb, i in late + [("waits for", i) for i in node.after if i not in nodes]:
            raise BoomspecError(f"{path}: task {node.name} {verb} {i[:12]}, which does not come before it")
        nodes[task_id] = node
    ids = {named: source.id for named, source in sources.items()} | {named: node.id for named, node in nodes.items()}
    for named, actual in ids.items():
        if named != actual:
            raise BoomspecError(f"{path}: {named[:12]} does not match its content: the file was altered")
    experiments = _EXPERIMENTS.validate_python(data["experiments"])
    targets, tracking = tuple(data["targets"]), dict(data.get("tracking") or {})
    return TaskGraph(data["name"], nodes, sources, targets, data["spec"], tuple(experiments), tracking)


def _node(entry: dict[str, Any], path: Path) -> Node:
    record_type = KINDS.get(entry["kind"])
    if record_type is None or record_type.version != entry["version"]:
        message = f"{path}: task kind {entry['kind']} version {entry['version']} is not known to this boomspec"
        raise BoomspecError(message, hint="compile the spec again with this version")
    task = Task(record_type.model_validate(entry["params"]), dict(entry["inputs"]))
    cost = None if entry["cost"] is None else Cost(**entry["cost"])
    rest = dict(entry["execution"])
    execution = Execution(**read_options(rest.pop("options")), **rest)
    after, generates = tuple(entry.get("after") or ()), bool(entry.get("generates"))
    return Node(task, entry["name"], execution, cost, after, generates)
