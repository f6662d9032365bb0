"""What commands print: tables for people (rich), JSON for programs, mermaid for pages."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from boomspec.compile import Compiled
from boomspec.graph import TaskGraph
from boomspec.plan import Plan
from boomspec.resolve import Family
from boomspec.sizes import Member, compact_plan, shown_bytes

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
            shown_bytes(member.bytes),
            _role(member) + (", untied" if family.facts.tied and not member.tied else ""),
            compact_plan(member.plan),
            *([", ".join(member.asked)] if asked else []),
        )
    Console(highlight=False).print(table)


def print_pending(compiled: Compiled) -> None:
    """What cannot be planned yet, and why."""
    from rich.console import Console

    waits = ", ".join(compiled.pending)
    Console(highlight=False).print(f"[bold]The rest is known after:[/] {waits} (a run goes on by itself)")


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
        "pending": list(compiled.pending),
        "teacher_layers": family.facts.count if family else None,
        "kept": list(family.kept) if family else None,
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
            for member in (family.members if family else ())
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


def _role(member: Member) -> str:
    if member.is_student:
        return "student"
    return "teacher" if member.is_teacher else "interpolated"
