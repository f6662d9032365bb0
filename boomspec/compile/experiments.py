"""Several experiments become one task graph, in which a task that they share is there once.

    SpecFiles --compile_experiments--> Compiled(one graph, the family of each experiment)

Every experiment has the ids that it would have alone. A Comparison takes the place of the experiments' reports. While
any of them waits for a search the graph is pending: its targets are the searches, and what is known already.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from boomspec.compile.compiler import Compiled, Parts, compile_parts, compile_spec, spec_text
from boomspec.compile.cost.pricing import priced
from boomspec.compile.places import tracking_of
from boomspec.compile.records import Answers
from boomspec.core.graph import Experiment, Node, Source, Task, TaskGraph
from boomspec.core.identity import canonical_plain, canonical_texts
from boomspec.core.tasks import Compared, Comparison
from boomspec.models.facts import ModelFacts
from boomspec.spec.spec_file import SpecFile


def compile_experiments(
    files: Sequence[SpecFile], answers: Answers = lambda search: None, *, given_up: Collection[str] = ()
) -> Compiled:
    """Compile the experiments of one spec file; one of them alone is what `compile_spec` makes of it.

    given_up: searches that have failed. Experiments that wait for one of them are left out, where others remain.
    """
    if len(files) == 1:
        return compile_spec(files[0], answers)
    nodes: dict[str, Node] = {}
    sources: dict[str, Source] = {}
    facts: dict[str, ModelFacts] = {}
    experiments: list[Experiment] = []
    parts = compile_parts(files, answers)
    parts = [part for part in parts if not set(given_up) & set(part.build.pending)] or parts
    pending: list[str] = []
    for i, part in enumerate(parts):
        sources |= part.build.sources
        facts |= part.build.facts
        experiments.append(part.experiment())
        for node in part.build.nodes.values():
            if node.id not in nodes:
                name = node.name if i == 0 else f"{part.build.file.label}: {node.name}"
                nodes[node.id] = Node(node.task, name, node.execution, after=node.after)
            elif nodes[node.id].after != node.after:  # one experiment's check must not hold up what another needs, too
                both = tuple(first for first in nodes[node.id].after if first in node.after)
                nodes[node.id] = replace(nodes[node.id], after=both)
        pending += part.build.pending
    known = [task for part in parts for task in (*part.products, *part.roles.values())]
    if pending:
        targets = [*pending, *known]
    else:
        compared = [Compared(label=p.build.file.label, axes=p.build.file.axes, cells=p.cells) for p in parts]
        inputs = {f"{p.build.file.label}/{role}": task for p in parts for role, task in p.roles.items()}
        task = Task(Comparison(experiments=tuple(compared)), inputs, _params(parts))
        comparison = Node(task, "comparison")
        nodes[comparison.id] = comparison
        targets = [*(task for part in parts for task in part.products), comparison.id]
    graph = TaskGraph(
        name=files[0].spec.name,
        nodes=priced(nodes, sources, facts),
        sources=sources,
        targets=tuple(dict.fromkeys(targets)),
        spec=spec_text(files[0]),
        experiments=tuple(experiments),
        tracking=tracking_of(files[0]),
    )
    families = {part.build.file.label: part.family for part in parts if part.family is not None}
    return Compiled(graph, families, tuple(nodes[search].name for search in dict.fromkeys(pending)))


def _params(parts: Sequence[Parts]) -> str:
    """The canonical JSON of the comparison; experiments of one family have the same cells, which are encoded once."""
    cells = {id(part.cells): part.cells for part in parts}
    plain = {i: [cell.model_dump(mode="json", exclude_none=True) for cell in found] for i, found in cells.items()}
    texts = {i: canonical_plain(found) for i, found in plain.items()}
    rows = [
        f'{{"axes":{canonical_texts(file.axes)},"cells":{texts[id(part.cells)]},"label":{canonical_plain(file.label)}}}'
        for part in parts
        for file in (part.build.file,)
    ]
    return f'{{"experiments":[{",".join(rows)}]}}'
