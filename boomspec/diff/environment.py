"""In what environment the artifacts of two runs were made: versions, code, hardware, as their records say."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from boomspec.core.graph import Node
from boomspec.core.sizes import shown_bytes
from boomspec.store import Store

MOST_RECORDS = 500  # of one run: more of them say the same
_SHOWN = ("python", "commit", "platform", "host")


@dataclass(frozen=True)
class Condition:
    """One thing that two runs have differently: each value that some of a run's artifacts were made with."""

    name: str  # "torch", "python", "gpus"
    old: tuple[str, ...]
    new: tuple[str, ...]


def conditions(old: tuple[Store, Iterable[Node]], new: tuple[Store, Iterable[Node]]) -> tuple[Condition, ...]:
    """What differs between the artifacts of two runs. What only one of them says is not compared."""
    before, after = _known(*old), _known(*new)
    return tuple(
        Condition(name, tuple(sorted(before[name])), tuple(sorted(values)))
        for name, values in after.items()
        if name in before and values != before[name]
    )


def _known(store: Store, nodes: Iterable[Node]) -> dict[str, set[str]]:
    known: dict[str, set[str]] = {}
    for provenance in islice(_provenances(store, [(node.task.kind, node.id) for node in nodes]), MOST_RECORDS):
        for name, value in _said(provenance):
            known.setdefault(name, set()).add(value)
    return known


def _provenances(store: Store, tasks: list[tuple[str, str]]) -> Iterator[dict[str, Any]]:
    """Many records are read at once, and no more than are wanted where every task has one."""
    for start in range(0, len(tasks), MOST_RECORDS):
        records = store.records(tasks[start : start + MOST_RECORDS]).values()
        yield from (record["provenance"] for record in records)


def _said(provenance: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield from ((name, str(provenance[name])) for name in _SHOWN if provenance.get(name) is not None)
    packages, hardware = provenance.get("packages"), provenance.get("hardware")
    if isinstance(packages, dict):
        yield from ((name, str(version)) for name, version in packages.items())
    if isinstance(hardware, dict):
        for name, value in hardware.items():
            match name, value:
                case "gpus", list():
                    yield "gpus", ", ".join(map(str, value)) or "none"
                case "memory_bytes", int():
                    yield "memory", shown_bytes(value)
                case _:
                    yield name, str(value)
