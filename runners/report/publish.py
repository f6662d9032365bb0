"""Write a report into a folder: of a run, from whatever its store holds, and of a `report` or `comparison` task.

report.html   everything, self-contained
*.png         the figures
and the files of `runners.report.tables`.
"""

from __future__ import annotations

from pathlib import Path

from boomspec.core.graph import TaskGraph
from boomspec.core.tasks import Comparison, Report
from boomspec.store import Store
from runners.report import page, tables
from runners.report.collect import collect
from runners.report.figures import write_png
from runners.report.run_notes import NO_NOTES, Notes, notes_of, why
from runners.report.study import Study
from runners.runtime.numbers import fetch_numbers

PAGE = "report.html"


def publish_run(graph: TaskGraph, store: Store, run_folder: Path, failures: dict[str, str]) -> Path:
    """Write `<run_folder>/report/` from whatever the store holds. Returns the path of report.html.

    `failures`: why tasks have no artifact, by task id: their own error, or that something they need failed.
    """
    node = next(node for node in graph.nodes.values() if isinstance(node.task.record, Report | Comparison))
    record, needed = node.task.record, {role: graph.nodes[task] for role, task in node.task.inputs.items()}
    assert isinstance(record, Report | Comparison)
    folders = fetch_numbers(store, store.records({(need.task.kind, need.id) for need in needed.values()}))

    def find(role: str) -> Path | str:
        need = needed[role]
        return folders.get((need.task.kind, need.id)) or why(graph, need.id, failures)

    study = collect(record, find)
    folder = run_folder / "report"
    folder.mkdir(parents=True, exist_ok=True)
    notes = notes_of(graph, store, failures, several=bool(study.axes))
    return write_page(folder, study, title=graph.name, figures=folder, notes=notes)


def write_page(folder: Path, study: Study, *, title: str, figures: Path, notes: Notes = NO_NOTES) -> Path:
    """Write a study's page and tables into `folder`, its figures into `figures`."""
    drawings, files = page.draw(study), tables.files(study, title)
    for drawing in drawings:
        write_png(drawing.figure, figures / f"{drawing.name}.png")
    html = page.render(study, title=title, drawings=drawings, files=files, notes=notes)
    for name, text in {**files, PAGE: html}.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder / PAGE
