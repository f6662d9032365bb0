"""What a verification prints: for people, and as JSON for programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from boomspec.core.errors import EXIT_OK, EXIT_RUN_FAILED, EXIT_SPEC_WRONG
from runners.verify.compare import Checked

FORMAT = 1  # of the JSON; raise it when a field changes its meaning
_ERROR_LINES = 4
_FILES = 5  # of one task that are listed
_NAMES = 12  # tasks of one verdict that are named; of more, how many of each kind (--json has them all)


def exit_code(checks: Sequence[Checked]) -> int:
    """As diff(1): 0 the same, 1 something differs, 2 something could not be compared."""
    verdicts = {check.verdict for check in checks}
    return EXIT_SPEC_WRONG if "failed" in verdicts else EXIT_RUN_FAILED if "differs" in verdicts else EXIT_OK


def first_that_differs(checks: Sequence[Checked]) -> Checked | None:
    """In the order of the graph."""
    return next((check for check in checks if check.verdict == "differs"), None)


def to_json(checks: Sequence[Checked], *, end_to_end: bool, scratch: Path | None) -> dict[str, Any]:
    first = first_that_differs(checks)
    state = {EXIT_OK: "same", EXIT_RUN_FAILED: "differs", EXIT_SPEC_WRONG: "incomplete"}[exit_code(checks)]
    return {
        "boomspec_verify": FORMAT,
        "state": state,
        "first": None if first is None else first.node.id,
        "inputs": "repeated" if end_to_end else "original",
        "scratch": None if scratch is None else str(scratch),
        "tasks": [
            {
                "id": check.node.id,
                "name": check.node.name,
                "kind": check.node.task.kind,
                "verdict": check.verdict,
                "tolerance": check.tolerance,
                "files": [
                    {
                        "path": file.path,
                        "verdict": file.verdict,
                        "what": file.apart.what,
                        "largest": file.apart.largest if file.apart.finite else None,
                        "where": file.apart.where,
                    }
                    for file in check.files
                ],
                "changes": list(check.changes),
                "error": check.error or None,
            }
            for check in checks
        ],
    }


def show(checks: Sequence[Checked], *, end_to_end: bool, scratch: Path | None) -> None:
    """Print what was found on the standard output."""
    console = Console(highlight=False, soft_wrap=False)
    first = first_that_differs(checks)
    console.print()
    _group(console, "identical", "green", [check for check in checks if check.verdict == "identical"])
    for tolerance in sorted({check.tolerance for check in checks if check.verdict == "within"}):
        group = [check for check in checks if check.verdict == "within" and check.tolerance == tolerance]
        _group(console, f"within {tolerance:g}", "yellow", group)
    _group(console, "differs", "red", [check for check in checks if check.verdict == "differs"])
    _group(console, "not repeated", "red", [check for check in checks if check.verdict == "failed"])
    for check in checks:
        if check.verdict == "within":
            console.print(f"\n[yellow]within {check.tolerance:g}[/]: {escape(check.node.name)}")
            _files(console, check)
    for check in checks:
        if check.verdict == "differs":
            begins = "first task that differs" if check is first else "differs, too"
            console.print(f"\n[red]{begins}[/]: [bold]{escape(check.node.name)}[/] ({check.node.id[:12]})")
            _files(console, check)
            console.print(f"  {escape(_cause(check, first, end_to_end))}", soft_wrap=True)
    for check in checks:
        if check.verdict == "failed":
            lines = check.error.splitlines()[:_ERROR_LINES] or ["no message"]
            console.print(f"\n[red]could not be made again[/]: {escape(check.node.name)}", soft_wrap=True)
            console.print("\n".join(f"  {escape(line)}" for line in lines), soft_wrap=True)
    console.print()
    console.print(escape(_summary(checks)), soft_wrap=True)
    if scratch is not None:
        console.print(f"kept: {escape(str(scratch))}", soft_wrap=True)


def _group(console: Console, verdict: str, colour: str, checks: Sequence[Checked]) -> None:
    if len(checks) > _NAMES:
        kinds = Counter(check.node.task.kind for check in checks)
        names = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    else:
        names = ", ".join(check.node.name for check in checks)
    if checks:
        console.print(f"[{colour}]{verdict}[/] ({len(checks)}): {escape(names)}")


def _files(console: Console, check: Checked) -> None:
    for file in check.files[:_FILES]:
        console.print(f"  {escape(file.path)}: {escape(file.apart.what)}", soft_wrap=True)
    if len(check.files) > _FILES:
        console.print(f"  and {len(check.files) - _FILES} more files")


def _cause(check: Checked, first: Checked | None, end_to_end: bool) -> str:
    """The likeliest reason of a difference."""
    if end_to_end and first is not None and check is not first:
        return f"it may follow from {first.node.name}"
    if check.changes:
        return f"since it was made: {'; '.join(check.changes)}"
    determinism = getattr(check.node.task.record, "determinism", None)
    if determinism is not None and determinism.algorithms == "any":
        return "the spec allows algorithms that give other bits on every run (determinism.algorithms: any)"
    return "packages and hardware are the same: the task is not repeatable here, or the artifact was altered"


def _summary(checks: Sequence[Checked]) -> str:
    counts = {verdict: sum(check.verdict == verdict for check in checks) for verdict in ("identical", "within")}
    different = sum(check.verdict == "differs" for check in checks)
    failed = sum(check.verdict == "failed" for check in checks)
    tasks = _counted(len(checks), "task")
    if counts["identical"] == len(checks):
        return f"verified: {tasks}, every file the same bit for bit"
    if not different and not failed:
        return f"verified: {tasks}, {counts['identical']} bit for bit and {counts['within']} within the tolerance"
    parts = [f"{different} of {tasks} differ{'s' if different == 1 else ''}"] if different else []
    parts += [f"{failed} could not be made again"] if failed else []
    return "not verified: " + ", ".join(parts)


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" + ("" if count == 1 else "s")


def in_order(checks: Iterable[Checked], order: Sequence[str]) -> list[Checked]:
    places = {task_id: place for place, task_id in enumerate(order)}
    return sorted(checks, key=lambda check: places[check.node.id])
