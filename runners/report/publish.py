"""Write a report into a folder: of a run, from whatever its store holds, and of a `report` or `comparison` task.

report.html    everything, self-contained
results.csv    one row per number (the fields of collect.HEADER; those of several experiments with their axes)
results.json   the same, what is missing and why, and what the numbers say
*.png          the figures
A comparison adds groups.csv and differences.csv, see `runners.report.files`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from boomspec.core.graph import TaskGraph
from boomspec.core.tasks import Comparison, Report
from boomspec.store import Store
from runners.report import comparison_page, page
from runners.report.collect import Results, collect
from runners.report.comparison import Study, study
from runners.report.figures import write_png
from runners.report.files import comparison_files, report_files
from runners.report.frame import Drawing
from runners.report.run_notes import experiments, opening, provenance, why
from runners.runtime.numbers import fetch_numbers

PAGE = "report.html"


def publish_run(graph: TaskGraph, store: Store, run_folder: Path, failures: dict[str, str]) -> Path:
    """Write `<run_folder>/report/` from whatever the store holds. Returns the path of report.html.

    `failures`: why tasks have no artifact, by task id: their own error, or that something they need failed.
    """
    node = next(node for node in graph.nodes.values() if isinstance(node.task.record, Report | Comparison))
    needed = {role: graph.nodes[task] for role, task in node.task.inputs.items()}
    there = store.records({(need.task.kind, need.id) for need in needed.values()})
    folders = fetch_numbers(store, there)

    def find(role: str) -> Path | str:
        need = needed[role]
        return folders.get((need.task.kind, need.id)) or why(graph, need.id, failures)

    folder = run_folder / "report"
    folder.mkdir(parents=True, exist_ok=True)
    told: dict[str, Any] = {
        "title": graph.name,
        "figures": folder,
        "question": opening(graph.spec),
        "spec": graph.spec,
        "provenance": provenance(graph, store, failures),
    }
    record = node.task.record
    if isinstance(record, Comparison):
        return write_comparison(folder, study(record, find), experiments=experiments(graph, store), **told)
    assert isinstance(record, Report)
    resolved = graph.experiments[0].meaning if graph.experiments else None
    return write_report(folder, collect(record, find), resolved=resolved, **told)


def write_report(folder: Path, results: Results, *, title: str, figures: Path, **told: Any) -> Path:
    """Write the page of one experiment and its tables into `folder`, the figures into `figures`."""
    drawings, files = page.draw(results), report_files(results, title)
    html = page.render(results, title=title, drawings=drawings, files=files, **told)
    return _write(folder, {**files, PAGE: html}, drawings, figures)


def write_comparison(folder: Path, found: Study, *, title: str, figures: Path, **told: Any) -> Path:
    """Write the page of several experiments and its tables into `folder`, the figures into `figures`."""
    drawings, files = comparison_page.draw(found), comparison_files(found, title)
    html = comparison_page.render(found, title=title, drawings=drawings, files=files, **told)
    return _write(folder, {**files, PAGE: html}, drawings, figures)


def _write(folder: Path, files: Mapping[str, str], drawings: Sequence[Drawing], figures: Path) -> Path:
    for drawing in drawings:
        write_png(drawing.figure, figures / f"{drawing.name}.png")
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder / PAGE
