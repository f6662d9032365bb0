"""Print what a verification has found: for people, and as JSON for programs."""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import groupby
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
_TITLES: dict[Verdict, str] = {
    "identical": "[green]identical[/]",
    "within": "[yellow]within {:g}[/]",
    "differs": "[red]differs[/]",
    "failed": "[red]not repeated[/]",
    "measured": "[yellow]measured again, with other numbers[/]",
}


def exit_code(checks: Sequence[Checked]) -> int:
    """As diff(1): 0 the same, 1 something differs, 2 something could not be compared."""
    verdicts = {check.verdict for check in checks}
    return EXIT_SPEC_WRONG if "failed" in verdicts else EXIT_RUN_FAILED if "differs" in verdicts else EXIT_OK


def to_json(checks: Sequence[Checked], *, end_to_end: bool, scratch: Path | None) -> dict[str, Any]:
    return {
        "boomspec_verify": FORMAT,
        "state": {EXIT_OK: "same", EXIT_RUN_FAILED: "differs", EXIT_SPEC_WRONG: "incomplete"}[exit_code(checks)],
        "first": next((check.node.id for check in checks if check.verdict == "differs"), None),
        "inputs": "repeated" if end_to_end else "original",
        "scratch": None if scratch is None else str(scratch),
        "tasks": [_task_json(check) for check in checks],
    }


def _task_json(check: Checked) -> dict[str, Any]:
    node, files = check.node, []
    for path, apart in check.files.items():
        verdict = "measured" if check.verdict == "measured" else "within" if apart.within else "differs"
        largest = None if apart.largest == math.inf else apart.largest
        files.append({"path": path, "verdict": verdict, "what": apart.what, "largest": largest, "where": apart.where})
    named = {"id": node.id, "name": node.name, "kind": node.task.kind, "verdict": check.verdict}
    found = {"tolerance": check.tolerance, "files": files}
    return {**named, **found, "changes": list(check.changes), "error": check.error or None}


def show(checks: Sequence[Checked], *, end_to_end: bool, scratch: Path | None) -> None:
    """Print a summary on the standard output; `checks` are in the order of the graph."""
    console = Console(highlight=False, soft_wrap=False)
    within, different, failed = ([c for c in checks if c.verdict == v] for v in ("within", "differs", "failed"))
    console.print()
    in_order = sorted(checks, key=lambda c: (list(_TITLES).index(c.verdict), c.tolerance * (c.verdict == "within")))
    for title, group in groupby(in_order, key=lambda check: _TITLES[check.verdict].format(check.tolerance)):
        found = list(group)
        kinds = Counter(check.node.task.kind for check in found)
        few, counts = [check.node.name for check in found], [f"{count} {kind}" for kind, count in kinds.items()]
        console.print(f"{title} ({len(found)}): {escape(', '.join(counts if len(found) > _NAMES else few))}")
    for check in [*within, *different]:
        heading = f"{_TITLES['within'].format(check.tolerance)}: {escape(check.node.name)}"
        if check.verdict == "differs":
            begins = "first task that differs" if check is different[0] else "differs, too"
            heading = f"[red]{begins}[/]: [bold]{escape(check.node.name)}[/] ({check.node.id[:12]})"
        console.print(f"\n{heading}")
        for path, apart in list(check.files.items())[:_FILES]:
            console.print(f"  {escape(path)}: {escape(apart.what)}", soft_wrap=True)
        if len(check.files) > _FILES:
            console.print(f"  and {len(check.files) - _FILES} more files")
        if check.verdict == "differs":
            console.print(f"  {escape(_cause(check, different[0], end_to_end))}", soft_wrap=True)
    for check in failed:
        lines = check.error.splitlines()[:_ERROR_LINES] or ["no message"]
        console.print(f"\n[red]could not be made again[/]: {escape(check.node.name)}", soft_wrap=True)
        console.print("\n".join(f"  {escape(line)}" for line in lines), soft_wrap=True)
    console.print()
    measured = sum(check.verdict == "measured" for check in checks)
    console.print(escape(_summary(len(checks), len(within), len(different), len(failed), measured)), soft_wrap=True)
    if scratch is not None:
        console.print(f"kept: {escape(str(scratch))}", soft_wrap=True)


def _cause(check: Checked, first: Checked, end_to_end: bool) -> str:
    if end_to_end and check is not first:
        return f"it may follow from {first.node.name}"
    if check.changes:
        return f"since it was made: {'; '.join(check.changes)}"
    determinism = getattr(check.node.task.record, "determinism", None)
    if determinism is not None and determinism.algorithms == "any":
        return "the spec allows algorithms that give other bits on every run (determinism.algorithms: any)"
    return "packages and hardware are the same: the task is not repeatable here, or the artifact was altered"


def _summary(total: int, within: int, different: int, failed: int, measured: int) -> str:
    tasks = f"{total} task" + ("" if total == 1 else "s")
    if different or failed:
        parts = [f"{different} of {tasks} differ{'s' if different == 1 else ''}"] if different else []
        return "not verified: " + ", ".join(parts + ([f"{failed} could not be made again"] if failed else []))
    if measured:
        same = f"{total - within - measured} bit for bit and {within} within the tolerance"
        return f"verified: {tasks}, {same}; {measured} measured the machine again, or show such numbers"
    if within:
        return f"verified: {tasks}, {total - within} bit for bit and {within} within the tolerance"
    return f"verified: {tasks}, every file the same bit for bit"
