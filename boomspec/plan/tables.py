"""What commands print: the sizes of a family as a table (rich), a graph as mermaid."""

from __future__ import annotations

from boomspec.compile.family import Family
from boomspec.core.graph import TaskGraph
from boomspec.core.sizes import Member, compact_plan, shown_bytes
from boomspec.models.whole import described


def print_family(family: Family, title: str = "Sizes") -> None:
    """The sizes of a family, exact, as a table."""
    from rich.console import Console  # rich is slow to import, and most commands print no table
    from rich.table import Table

    teacher = family.members[-1]
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
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
    console = Console(highlight=False)
    console.print(table)
    if (rest := described(family.facts, keep=family.rest)) is not None:
        console.print(rest, markup=False)


def mermaid(graph: TaskGraph) -> str:
    """The graph as a mermaid flow chart."""
    rows = ["flowchart LR"]
    rows += [f'  {source.id[:8]}[/"{source.kind}"/]' for source in graph.sources.values()]
    rows += [f'  {node.id[:8]}["{node.name}"]' for node in graph.nodes.values()]
    for node in graph.nodes.values():
        rows += [f"  {needs[:8]} --> {node.id[:8]}" for needs in dict.fromkeys(node.task.inputs.values())]
        rows += [f"  {first[:8]} -.-> {node.id[:8]}" for first in node.after]
    return "\n".join(rows)


def _role(member: Member) -> str:
    if member.is_student:
        return "student"
    return "teacher" if member.is_teacher else "interpolated"
