"""Write the card and the index of a folder of several sizes: what each size is, what was measured, how it is loaded."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import boomspec
from boomspec.core.graph import TaskGraph
from boomspec.core.sizes import Lineage, Member, compact_plan, shown_bytes
from boomspec.models.trust import foreign_code
from boomspec.store import Store
from runners.modeling.models import lineage_of
from runners.report.card_metadata import front_matter, measured_rows
from runners.report.model_card import base_metadata, fence, source_of
from runners.report.page import TEMPLATES

Kind = Literal["folders", "family", "gguf"]
_COLUMNS = 6  # numbers beside each other in the table; the index has all


def results_of(graph: TaskGraph, store: Store) -> list[dict[str, Any]]:
    """Every number in the store, with the layer plan of the size that it is of; a baseline's has none."""
    lineage = lineage_of(graph)
    members = (lineage.trained, *lineage.members)
    plans = {task: member.to_json()["plan"] for member in members if (task := graph.task_of(member)) is not None}
    found = []
    for model, row in measured_rows(graph, store):
        cell = row.cell.model_dump(mode="json", exclude_none=True, exclude={"input"})
        number = {"of": row.measure, "metric": row.metric, "value": row.value, "stderr": row.stderr}
        about = {"higher_is_better": row.higher_is_better, "note": row.note or None, "plan": plans.get(model)}
        found.append({**cell, **{name: value for name, value in {**number, **about}.items() if value is not None}})
    return found


def base_of(graph: TaskGraph) -> dict[str, Any]:
    """Name and licence of the model that a family was made of; empty where it was trained from nothing."""
    source = source_of(graph, lineage_of(graph).teacher)
    return {} if source is None else base_metadata(source)


def family_card(
    graph: TaskGraph,
    store: Store,
    sizes: Mapping[str, Member],
    results: Sequence[dict[str, Any]],
    *,
    kind: Kind,
    name: str,
) -> str:
    """The text of README.md for a folder that holds these sizes, by their folders or files; `name` is the folder's."""
    lineage, base = lineage_of(graph), base_of(graph)
    library = {"folders": "transformers", "family": "boomspec", "gguf": "gguf"}[kind]
    models = {f"{graph.name}, {path}": member for path, member in sizes.items()}
    tags = ("gguf",) if kind == "gguf" else ()
    columns = _columns(results)
    return TEMPLATES.get_template("family_card.md.jinja").render(
        front_matter=front_matter(graph, store, models, base, library=library, tags=tags),
        title=graph.name,
        kind=kind,
        name=name,
        first=next(iter(sizes)),
        base=base,
        sizes=[_row(path, member, lineage, results, columns) for path, member in sizes.items()],
        columns=columns,
        more=len({(r["of"], r["metric"]) for r in results}) > len(columns),
        code=foreign_code(graph),
        lineage=lineage,
        index={"family": "family.json"}.get(kind, "index.json"),
        spec=fence(graph.spec),
        graph=graph.id,
        version=boomspec.__version__,
    )


def index(graph: TaskGraph, sizes: Mapping[str, Member], results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What `index.json` of a folder of sizes holds."""
    lineage = lineage_of(graph)
    listed = []
    for path, member in sizes.items():
        own = [result for result in results if result.get("plan") == member.to_json()["plan"]]
        share = member.parameters / lineage.members[-1].parameters
        listed.append({"path": path, **member.to_json(), "of_teacher": share, "results": own})
    base = {key: value for key, value in base_of(graph).items() if key in ("base_model", "license")}
    return {"name": graph.name, "graph": graph.id, "boomspec": boomspec.__version__, **base, "sizes": listed}


def _columns(results: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """Measures and metrics that the table shows: of many, of each measure the first that has a standard error."""
    every = list(dict.fromkeys((result["of"], result["metric"]) for result in results if "plan" in result))
    if len(every) <= _COLUMNS:
        return every
    by_stderr = sorted(results, key=lambda result: "stderr" not in result)
    primary = {result["of"]: result["metric"] for result in reversed(by_stderr)}
    return [pair for pair in every if primary.get(pair[0]) == pair[1]][:_COLUMNS]


def _row(
    path: str, member: Member, lineage: Lineage, results: Sequence[dict[str, Any]], columns: Sequence[tuple[str, str]]
) -> dict[str, Any]:
    own = [result for result in results if result.get("plan") == member.to_json()["plan"]]
    values = {(result["of"], result["metric"]): result for result in own}
    return {
        "path": path,
        "member": member,
        "plan": compact_plan(member.plan),
        "share": member.parameters / lineage.members[-1].parameters,
        "bytes": shown_bytes(member.bytes),
        "values": [values.get(column) for column in columns],
    }
