"""Write a report into a folder: of a run, from whatever its store holds, and of a `report` task.

report.html    everything, self-contained
results.csv    one row per number (the fields of collect.HEADER)
results.json   the same, what is missing and why, and what the numbers say
*.png          the figures
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from boomspec.graph import TaskGraph
from boomspec.store import Store
from boomspec.tasks import Report
from runners.report.collect import HEADER, Results, collect, tidy
from runners.report.figures import write_png
from runners.report.findings import findings, outcome
from runners.report.page import Provenance, draw, render
from runners.report.words import size


def publish_run(graph: TaskGraph, store: Store, run_folder: Path, failures: dict[str, str]) -> Path:
    """Write `<run_folder>/report/` from whatever the store holds. Returns the path of report.html.

    `failures`: why tasks have no artifact, by task id: their own error, or that something they need failed.
    """
    node = next(node for node in graph.nodes.values() if isinstance(node.task.record, Report))
    record = node.task.record
    assert isinstance(record, Report)

    def find(role: str) -> Path | str:
        needed = graph.nodes[node.task.inputs[role]]
        kind, task_id = needed.task.kind, needed.id
        return store.path(kind, task_id) if store.has(kind, task_id) else _why(graph, needed.id, failures)

    folder = run_folder / "report"
    folder.mkdir(parents=True, exist_ok=True)
    return write_report(
        folder,
        collect(record, find),
        title=graph.name,
        figures=folder,
        question=_opening(graph.spec),
        spec=graph.spec,
        resolved=graph.experiments[0].meaning,
        provenance=_provenance(graph, store, failures),
    )


def write_report(folder: Path, results: Results, *, title: str, figures: Path, **page: Any) -> Path:
    """Write report.html, results.csv and results.json into `folder`, the figures into `figures`."""
    drawings = draw(results)
    for drawing in drawings:
        write_png(drawing.figure, figures / f"{drawing.name}.png")
    table, everything = _csv(results), _json(results, title)
    (folder / "results.csv").write_text(table, encoding="utf-8")
    (folder / "results.json").write_text(everything, encoding="utf-8")
    target = folder / "report.html"
    html = render(results, title=title, drawings=drawings, csv=table, json=everything, **page)
    target.write_text(html, encoding="utf-8")
    return target


def _csv(results: Results) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, HEADER, lineterminator="\n")
    writer.writeheader()
    writer.writerows(tidy(results.rows))
    return text.getvalue()


def _json(results: Results, title: str) -> str:
    missing = [
        {**m.cell.model_dump(include={"series", "layers", "parameters", "measure"}), "name": m.name, "reason": m.reason}
        for m in results.missing
    ]
    content = {
        "title": title,
        "outcome": outcome(results),
        "findings": findings(results),
        "results": tidy(results.rows),
        "missing": missing,
    }
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _why(graph: TaskGraph, task_id: str, failures: dict[str, str]) -> str:
    """Why a task has no artifact: its own failure, or the one that its failure follows from."""
    cause = _cause(graph, task_id, failures)
    if cause is None:
        return "it has not been run"
    if cause == task_id:
        return failures[task_id]
    return f"needs {graph.nodes[cause].name}, which failed: {failures[cause]}"


def _cause(graph: TaskGraph, task_id: str, failures: dict[str, str]) -> str | None:
    """The failed task, among those that `task_id` needs and itself, that needs no other failed one."""
    above = (_cause(graph, needed, failures) for needed in graph.task_inputs(task_id))
    return next((cause for cause in above if cause is not None), task_id if task_id in failures else None)


def _opening(spec: str) -> Sequence[str]:
    """The paragraphs of the comment that a spec opens with: the question that it answers."""
    paragraphs = [""]
    for line in spec.splitlines():
        if not line.startswith("#"):
            break
        text = line.lstrip("#").strip()
        if text:
            paragraphs[-1] = f"{paragraphs[-1]} {text}".strip()
        else:
            paragraphs.append("")
    return [paragraph for paragraph in paragraphs if paragraph]


def _provenance(graph: TaskGraph, store: Store, failures: dict[str, str]) -> Provenance:
    records = {node.id: store.record(node.task.kind, node.id) for node in graph.nodes.values()}
    made = [record["provenance"] for record in records.values() if record is not None]
    tasks: list[dict[str, Any]] = []
    for node in graph.nodes.values():
        record, cause = records[node.id], _cause(graph, node.id, failures)
        state = "done" if record else "not done" if cause is None else "failed" if cause == node.id else "blocked"
        seconds = record["provenance"].get("seconds") if record else None
        tasks.append({"name": node.name, "kind": node.task.kind, "id": node.id, "seconds": seconds, "state": state})
    total = sum(task["seconds"] or 0.0 for task in tasks)
    facts = [
        ("graph", graph.id),
        ("commit", _distinct(p.get("commit") for p in made)),
        ("packages", _distinct(_named(p.get("packages", {})) for p in made)),
        ("Python", _distinct(p.get("python") for p in made)),
        ("hardware", _distinct(_hardware(p.get("hardware", {})) for p in made)),
        ("platform", _distinct(p.get("platform") for p in made)),
        ("finished", max((p.get("finished", "") for p in made), default="")),
        ("time of all tasks", f"{total:.0f} s"),
    ]
    return Provenance([(name, value) for name, value in facts if value], tasks)


def _distinct(values: Any) -> str:
    return "; ".join(dict.fromkeys(str(value) for value in values if value))


def _named(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _hardware(hardware: dict[str, Any]) -> str:
    if not hardware:
        return ""
    gpus = ", ".join(hardware.get("gpus", [])) or "no GPU"
    return f"{hardware['cpu']}, {hardware['cpus']} CPUs, {size(hardware['memory_bytes'])}, {gpus}"
