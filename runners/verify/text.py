"""Print what a verification has found: for people, and as JSON for programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from boomspec.core.errors import EXIT_OK, EXIT_RUN_FAILED, EXIT_SPEC_WRONG
from runners.verify.compare import Checked, Verdict

FORMAT = 1  # of the JSON; raise it when a field changes its meaning
_ERROR_LINES = 4
_FILES = 5  # of one task that are listed
_NAMES = 12  # tasks of one verdict that are named; of more, how many of each kind (--json has them all)


def exit_code(checks: Sequence[Checked]) -> int:
    """As diff(1): 0 the same, 1 something differs, 2 something could not be compared."""
    if _of(checks, "failed"):
        return EXIT_SPEC_WRONG
    return EXIT_RUN_FAILED if _of(checks, "differs") else EXIT_OK


def _of(checks: Sequence[Checked], verdict: Verdict) -> list[Checked]:
    return [check for check in checks if check.verdict == verdict]


def to_json(checks: Sequence[Checked], *, end_to_end: bool, scratch: Path | None) -> dict[str, Any]:
    first = next(iter(_of(checks, "differs")), None)
    return {
        "boomspec_verify": FORMAT,
        "state": {EXIT_OK: "same", EXIT_RUN_FAILED: "differs", EXIT_SPEC_WRONG: "incomplete"}[exit_code(checks)],
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
    """Print a summary on the standard output; `checks` are in the order of the graph."""
    console = Console(highlight=False, soft_wrap=False)
    within, different, failed = _of(checks, "within"), _of(checks, "differs"), _of(checks, "failed")
    console.print()
    _print_names(console, "identical", "green", _of(checks, "identical"))
    for tolerance in sorted({check.tolerance for check in within}):
        _print_names(console, f"within {tolerance:g}", "yellow", [c for c in within if c.tolerance == tolerance])
    _print_names(console, "differs", "red", different)
    _print_names(console, "not repeated", "red", failed)
    for check in within:
        console.print(f"\n[yellow]within {check.tolerance:g}[/]: {escape(check.node.name)}")
        _print_files(console, check)
    for check in different:
        begins = "first task that differs" if check is different[0] else "differs, too"
        console.print(f"\n[red]{begins}[/]: [bold]{escape(check.node.name)}[/] ({check.node.id[:12]})")
        _print_files(console, check)
        console.print(f"  {escape(_cause(check, different[0], end_to_end))}", soft_wrap=True)
    for check in failed:
        lines = check.error.splitlines()[:_ERROR_LINES] or ["no message"]
        console.print(f"\n[red]could not be made again[/]: {escape(check.node.name)}", soft_wrap=True)
        console.print("\n".join(f"  {escape(line)}" for line in lines), soft_wrap=True)
    console.print()
    console.print(escape(_summary(len(checks), len(within), len(different), len(failed))), soft_wrap=True)
    if scratch is not None:
        console.print(f"kept: {escape(str(scratch))}", soft_wrap=True)


def _print_names(console: Console, verdict: str, colour: str, checks: Sequence[Checked]) -> None:
    kinds = Counter(check.node.task.kind for check in checks)
    few, counts = [check.node.name for check in checks], [f"{count} {kind}" for kind, count in kinds.items()]
    if checks:
        names = ", ".join(counts if len(checks) > _NAMES else few)
        console.print(f"[{colour}]{verdict}[/] ({len(checks)}): {escape(names)}")


def _print_files(console: Console, check: Checked) -> None:
    for file in check.files[:_FILES]:
        console.print(f"  {escape(file.path)}: {escape(file.apart.what)}", soft_wrap=True)
    if len(check.files) > _FILES:
        console.print(f"  and {len(check.files) - _FILES} more files")


def _cause(check: Checked, first: Checked, end_to_end: bool) -> str:
    """The likeliest reason of a difference."""
    if end_to_end and check is not first:
        return f"it may follow from {first.node.name}"
    if check.changes:
        return f"since it was made: {'; '.join(check.changes)}"
    determinism = getattr(check.node.task.record, "determinism", None)
    if determinism is not None and determinism.algorithms == "any":
        return "the spec allows algorithms that give other bits on every run (determinism.algorithms: any)"
    return "packages and hardware are the same: the task is not repeatable here, or the artifact was altered"


def _summary(total: int, within: int, different: int, failed: int) -> str:
    tasks = f"{total} task" + ("" if total == 1 else "s")
    if different or failed:
        parts = [f"{different} of {tasks} differ{'s' if different == 1 else ''}"] if different else []
        return "not verified: " + ", ".join(parts + ([f"{failed} could not be made again"] if failed else []))
    if within:
        return f"verified: {tasks}, {total - within} bit for bit and {within} within the tolerance"
    return f"verified: {tasks}, every file the same bit for bit"
