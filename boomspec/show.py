"""What commands print: tables for people (rich), JSON for programs, mermaid for pages."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from boomspec.compile import Compiled
from boomspec.graph import TaskGraph
from boomspec.plan import Plan
from boomspec.resolve import Family, Member

PLAN_SCHEMA_VERSION = 1
_MARKS = {"reuse": "=", "run": "+", "unneeded": " ", "blocked": "!"}
_STYLES = {"reuse": "green", "run": "yellow", "unneeded": "dim", "blocked": "bold red"}


def print_family(family: Family) -> None:
    """The sizes of a family, exact, as a table."""
    from rich.console import Console  # rich is slow to import, and most commands print no table
    from rich.table import Table

    teacher = family.members[-1]
    table = Table(title="Sizes", title_justify="left", box=None, pad_edge=False, header_style="bold")
    for heading in ("layers", "parameters", "of teacher", "weights"):
        table.add_column(heading, justify="right")
    asked = any(member.asked for member in family.members)
    for heading in ["", "plan", *(["asked for"] if asked else [])]:
        table.add_column(heading, overflow="fold")
    for member in family.members:
        table.add_row(
            str(member.layers),
            f"{member.parameters:,}",
            f"{member.parameters / teacher.parameters:.1%}",
            _bytes(member.bytes),
            _role(member) + (", untied" if family.facts.tied and not member.tied else ""),
            compact_plan(member),
            *([", ".join(member.asked)] if asked else []),
        )
    Console(highlight=False).print(table)


def print_plan(graph: TaskGraph, plan: Plan, store: Path) -> None:
    """Every task with what happens to it and why, and the counts."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    table = Table(box=None, pad_edge=False, header_style="bold", show_header=False)
    for node in graph.nodes.values():
        step = plan.steps[node.id]
        style = _STYLES[step.action]
        table.add_row(
            f"[{style}]{_MARKS[step.action]} {step.action}[/]", node.name, f"[dim]{node.id[:12]}[/]", step.reason
        )
    console.print(f"\n[bold]Tasks[/] (store: {store})")
    console.print(table)
    counts = Counter(step.action for step in plan.steps.values())
    console.print(f"\n{counts['run']} to run, {counts['reuse']} to reuse, {counts['blocked']} blocked.")


def plan_json(compiled: Compiled, plan: Plan) -> dict[str, Any]:
    """The plan for programs. `schema` rises when a field changes its meaning."""
    family = compiled.family
    return {
        "schema": PLAN_SCHEMA_VERSION,
        "name": compiled.graph.name,
        "graph": compiled.graph.id,
        "teacher_layers": family.facts.count,
        "kept": list(family.kept),
        "sizes": [
            {
                "layers": member.layers,
                "patched": member.patched,
                "parameters": member.parameters,
                "bytes": member.bytes,
                "tied": member.tied,
                "plan": list(member.plan),
                "asked": list(member.asked),
            }
            for member in family.members
        ],
        "tasks": [
            {
                "id": node.id,
                "kind": node.task.kind,
                "name": node.name,
                "action": plan.steps[node.id].action,
                "reason": plan.steps[node.id].reason,
            }
            for node in compiled.graph.nodes.values()
        ],
    }


def mermaid(graph: TaskGraph) -> str:
    """The graph as a mermaid flow chart."""
    rows = ["flowchart LR"]
    rows += [f'  {source.id[:8]}[/"{source.kind}"/]' for source in graph.sources.values()]
    rows += [f'  {node.id[:8]}["{node.name}"]' for node in graph.nodes.values()]
    for node in graph.nodes.values():
        rows += [f"  {needs[:8]} --> {node.id[:8]}" for needs in dict.fromkeys(node.task.inputs.values())]
    return "\n".join(rows)


def compact_plan(member: Member) -> str:
    """A layer plan with runs written short: "s0-3 t8-15"."""
    runs: list[list[int | str]] = []
    for layer in member.plan:
        owner, index = layer[0], int(layer[1:])
        if runs and runs[-1][0] == owner and runs[-1][2] == index - 1:
            runs[-1][2] = index
        else:
            runs.append([owner, index, index])
    return " ".join(f"{owner}{a}" if a == b else f"{owner}{a}-{b}" for owner, a, b in runs)


def _role(member: Member) -> str:
    if member.is_student:
        return "student"
    return "teacher" if member.is_teacher else "interpolated"


def _bytes(count: int) -> str:
    size, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while size >= 1024 and len(units) > 1:
        size, units = size / 1024, units[1:]
    return f"{size:.1f} {units[0]}"
