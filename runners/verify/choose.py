"""Choose the tasks to verify, check that their original artifacts can be used, and make a store for the repetitions."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

from boomspec.core.errors import BoomspecError, did_you_mean
from boomspec.core.execution import read_options
from boomspec.core.files import locked_folder
from boomspec.core.graph import Node, TaskGraph
from boomspec.store import FolderStore, Store
from boomspec.store.sources import missing_files, uploaded
from runners.runtime.interrupt import Interrupt

_NAMED = 5  # artifacts that an error names before it only counts


def choose(graph: TaskGraph, names: Sequence[str], kinds: Sequence[str], *, end_to_end: bool) -> list[Node]:
    """The tasks of these names (or patterns such as "evaluate *") and kinds, in the order of the graph.

    By default every task but checks, which are of one version of transformers, and measurements of a machine, which
    come out otherwise each time. `end_to_end` adds every task that they are made from. Raises BoomspecError for a name
    or kind that no task has.
    """
    nodes, chosen = list(graph.nodes.values()), set[str]()
    for name in names:
        if not (found := {node.id for node in nodes if node.name == name or fnmatchcase(node.name, name)}):
            existing = [node.name for node in nodes]
            hint = did_you_mean(name, existing) or f"tasks: {_few(existing)}"
            raise BoomspecError(f"no task is called '{name}'", hint=hint)
        chosen |= found
    known = sorted({node.task.kind for node in nodes})
    for kind in kinds:
        if kind not in known:
            raise BoomspecError(f"this run has no task of kind '{kind}'", hint=f"its kinds: {', '.join(known)}")
        chosen |= {node.id for node in nodes if node.task.kind == kind}
    if not (names or kinds):
        records = {node.id: node.task.record for node in nodes}
        chosen = {i for i, record in records.items() if record.decides_results and record.repeatable}
    if end_to_end:
        for node in reversed(nodes):
            if node.id in chosen:
                chosen.update(graph.task_inputs(node.id))
    return [node for node in nodes if node.id in chosen]


def check_originals(graph: TaskGraph, store: Store, nodes: Sequence[Node], interrupt: Interrupt) -> None:
    """Compare the artifacts of `nodes` and of their inputs with their records, contents included.

    Raises BoomspecError for artifacts and sources that are missing or damaged. Returns early when interrupted.
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
    reads = [(node, i, graph.sources[i]) for node in nodes for i in node.task.inputs.values() if i in graph.sources]
    absent = {i: (source, paths) for _, i, source in reads if (paths := missing_files(source))}
    lost = absent.keys() - uploaded(store, [source for source, _ in absent.values()])
    if gone := [f"{node.name} reads {path}" for node, i, _ in reads if i in lost for path in absent[i][1]]:
        raise BoomspecError(f"what the run has read is gone: {_few(gone, '; ')}", hint="put it back where it was")


def _few(items: Sequence[str], separator: str = ", ") -> str:
    more = f" and {len(items) - _NAMED} more" if len(items) > _NAMED else ""
    return separator.join(items[:_NAMED]) + more


def as_it_was_made(node: Node, store: Store) -> Node:
    """The node with the resources and options that its artifact was made with: threads and micro batch change bits."""
    made = (store.record(node.task.kind, node.id) or {}).get("provenance", {}).get("execution")
    if made is None:
        return node
    execution = replace(node.execution, cpus=made["cpus"], gpus=made["gpus"], **read_options(made["options"]))
    return replace(node, execution=execution)


@contextmanager
def scratch_store(parent: Path, original: Store, *, keep: bool) -> Iterator[Store]:
    """A new store in `parent`, removed at the end unless `keep`; the next call removes that of a killed process."""
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
