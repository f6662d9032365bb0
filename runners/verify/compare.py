"""Compare an artifact with its repetition, and say what has changed around them since.

In: the records of two artifacts of one task (`artifact.json`) and their folders. Out: a `Checked`. Files are the same
where the sha256 in the two records are: the original's files have been compared with its record before.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from boomspec.core.graph import Node, TaskGraph
from boomspec.store import Store
from runners.verify.files import Apart, compare_files

Verdict = Literal["identical", "within", "differs", "failed"]
_DRAWN = {".png", ".html"}  # a report's pictures and page: made from the numbers beside them


@dataclass(frozen=True)
class FileCheck:
    """A file that is not the same in both artifacts."""

    path: str
    verdict: Literal["within", "differs"]
    apart: Apart


@dataclass(frozen=True)
class Checked:
    """What the repetition of one task has shown."""

    node: Node
    verdict: Verdict
    tolerance: float
    files: tuple[FileCheck, ...] = ()
    changes: tuple[str, ...] = ()  # of packages and hardware since the original was made
    error: str = ""  # why it could not be made again


def tolerance_of(graph: TaskGraph, task_id: str) -> float:
    """`determinism.tolerance` of the spec; of several experiments that share the task the smallest."""
    sharing = [e.meaning for e in graph.experiments if task_id in e.tasks.values()]
    return min((float(said.get("determinism", {}).get("tolerance", 0.0)) for said in sharing), default=0.0)


def compare(node: Node, original: Store, again: Store, tolerance: float) -> Checked:
    """Compare the artifacts of one task in two stores. Both must be there."""
    kind, task_id = node.task.kind, node.id
    one, other = original.record(kind, task_id), again.record(kind, task_id)
    assert one is not None
    assert other is not None
    digests, repeated = ({file["path"]: file["sha256"] for file in record["files"]} for record in (one, other))
    files: list[FileCheck] = []
    for path in {**digests, **repeated}:
        if digests.get(path) == repeated.get(path):
            continue
        if path in digests and path in repeated:
            folders = original.fetch(kind, task_id), again.fetch(kind, task_id)
            apart = compare_files(folders[0] / path, folders[1] / path, tolerance)
        else:
            apart = Apart(f"only the {'original' if path in digests else 'repetition'} has this file", False)
        files.append(FileCheck(path, "within" if apart.within else "differs", apart))
    files = _drawn_from_numbers(files)
    verdict: Verdict = "identical"
    if files:
        verdict = "within" if all(file.verdict == "within" for file in files) else "differs"
    return Checked(node, verdict, tolerance, tuple(files), changes(one["provenance"], other["provenance"]))


def _drawn_from_numbers(files: list[FileCheck]) -> list[FileCheck]:
    """Pictures and pages cannot be compared by numbers: they are as good as the numbers that they show."""
    numbers = [file for file in files if Path(file.path).suffix not in _DRAWN]
    if not numbers or any(file.verdict == "differs" for file in numbers):
        return files
    what = Apart("shows numbers that are within the tolerance", True)
    return [file if file in numbers else FileCheck(file.path, "within", what) for file in files]


def changes(then: dict[str, Any], now: dict[str, Any]) -> tuple[str, ...]:
    """What may explain a difference: "torch 2.8.0 -> 2.9.1". From the provenance of two artifacts."""
    found = [_change("boomspec's commit", then, now, "commit"), _change("python", then, now, "python")]
    packages = then.get("packages", {}), now.get("packages", {})
    found += [_change(name, *packages, name) for name in sorted({**packages[0], **packages[1]})]
    hardware = then.get("hardware", {}), now.get("hardware", {})
    found += [_change(said, *hardware, key) for key, said in (("cpu", "CPU"), ("cpus", "CPUs"), ("gpus", "GPUs"))]
    found.append(_change("platform", then, now, "platform"))
    return tuple(change for change in found if change is not None)


def _change(what: str, then: dict[str, Any], now: dict[str, Any], key: str) -> str | None:
    before, after = then.get(key), now.get(key)
    return None if before == after else f"{what} {_said(before)} -> {_said(after)}"


def _said(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "not recorded" if value is None else re.sub(r"\b([0-9a-f]{12})[0-9a-f]{28}\b", r"\1", str(value))
