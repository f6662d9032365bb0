"""What is verified: the tasks that were asked for, whether the originals can be used, and where the repetitions go."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

from boomspec.core.errors import BoomspecError, did_you_mean
from boomspec.core.files import locked_folder
from boomspec.core.graph import Node, TaskGraph
from boomspec.store import FolderStore, Store
from boomspec.store.sources import missing_files, uploaded
from runners.runtime.interrupt import Interrupt

_NAMED = 5  # artifacts that an error names before it only counts


def choose(graph: TaskGraph, names: Sequence[str], kinds: Sequence[str], *, end_to_end: bool) -> list[Node]:
    """The tasks of these names (or patterns such as "evaluate *") and kinds, in the order of the graph.

    By default all that a result comes from: a check is none, and another version of transformers asks for another one.
    `end_to_end` adds every task that they are made from. Raises BoomspecError for what no task is called.
    """
    nodes = list(graph.nodes.values())
    for name in names:
        if not any(_called(node, name) for node in nodes):
            hint = did_you_mean(name, [node.name for node in nodes])
            raise BoomspecError(f"no task is called '{name}'", hint=hint or f"tasks: {_few([n.name for n in nodes])}")
    there = sorted({node.task.kind for node in nodes})
    for kind in kinds:
        if kind not in there:
            raise BoomspecError(f"this run has no task of kind '{kind}'", hint=f"its kinds: {', '.join(there)}")
    chosen = {
        node.id
        for node in nodes
        if node.task.kind in kinds
        or any(_called(node, name) for name in names)
        or (node.task.record.decides_results and not (names or kinds))
    }
    if end_to_end:
        for node in reversed(nodes):
            if node.id in chosen:
                chosen.update(graph.task_inputs(node.id))
    return [node for node in nodes if node.id in chosen]


def _called(node: Node, name: str) -> bool:
    return node.name == name or fnmatchcase(node.name, name)


def check_originals(graph: TaskGraph, store: Store, nodes: Sequence[Node], interrupt: Interrupt) -> None:
    """Compare the artifacts of `nodes` and of their inputs with their records, contents included.

    Raises BoomspecError, naming what is not there or damaged, and what the tasks read that is gone. Returns early
    when interrupted.
    """
    read = {i for node in nodes for i in [node.id, *graph.task_inputs(node.id)]}
    missing, damaged = [], []
    for node in (node for node in graph.nodes.values() if node.id in read):
        if interrupt.requested:
            return
        damage = store.damage(node.task.kind, node.id, checksums=True)
        record = store.record(node.task.kind, node.id)
        if damage is None and record is not None and record["id"] != node.id:
            damage = f"its record is that of {record['id'][:12]}"
        if damage is not None:
            damaged.append(f"{node.name}: {damage}")
        elif record is None:
            missing.append(node.name)
    hint = "run it again, or choose others with --task and --kind"
    if damaged:
        raise BoomspecError(f"artifacts of the run are damaged: {_few(damaged, '; ')}", hint=hint)
    if missing:
        count = f"{len(missing)} of {len(read)} artifacts are not in the store {store.address}"
        raise BoomspecError(f"this run has not finished: {count}: {_few(missing)}", hint=hint)
    sources = {i: graph.sources[i] for node in nodes for i in node.task.inputs.values() if i in graph.sources}
    absent = {i: paths for i, source in sources.items() if (paths := missing_files(source))}
    in_store = uploaded(store, [sources[i] for i in absent])
    gone = [
        f"{node.name} reads {path}"
        for node in nodes
        for i in node.task.inputs.values()
        if i not in in_store
        for path in absent.get(i, ())
    ]
    if gone:
        raise BoomspecError(f"what the run has read is gone: {_few(gone, '; ')}", hint="put it back where it was")


def _few(items: Sequence[str], separator: str = ", ") -> str:
    more = f" and {len(items) - _NAMED} more" if len(items) > _NAMED else ""
    return separator.join(items[:_NAMED]) + more


def as_it_was_made(node: Node, store: Store) -> Node:
    """The node with the resources and options that its artifact was made with: threads and micro batch change bits."""
    record = store.record(node.task.kind, node.id)
    made = (record or {}).get("provenance", {}).get("execution")
    if made is None:
        return node
    execution = replace(node.execution, cpus=made["cpus"], gpus=made["gpus"], options=made["options"])
    return replace(node, execution=execution)


@contextmanager
def scratch_store(parent: Path, original: Store, *, keep: bool) -> Iterator[Store]:
    """A new store in the folder `parent`, removed at the end unless it is kept.

    That of a process that was killed is removed by the next call.
    """
    with ExitStack() as held:
        try:
            parent.mkdir(parents=True, exist_ok=True)
            if keep:
                folder = Path(tempfile.mkdtemp(prefix=f"{original.root.name}-verify-", dir=parent))
            else:
                folder = held.enter_context(locked_folder(parent, f".{original.root.name}-verify."))
        except OSError as error:
            message = f"{parent}: cannot be written: {error.strerror}"
            raise BoomspecError(message, hint="name a --scratch folder") from error
        yield FolderStore(folder)
