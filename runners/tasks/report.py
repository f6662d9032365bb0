"""The report of a family as an artifact: results.csv, results.json, figures/*.png, report.html.

The same inputs give the same bytes: no run's name, dates or machines.
"""

from __future__ import annotations

from boomspec.core.tasks import Report
from runners.report.collect import collect
from runners.report.page import write_page
from runners.runtime.context import Context


def run(context: Context[Report]) -> None:
    layers = [cell.layers for cell in context.record.cells]
    title = f"A model family of {min(layers)} to {max(layers)} layers" if layers else "A model family"
    figures = context.path / "figures"
    figures.mkdir()
    study = collect(context.record, lambda role: context.inputs[role].folder)
    write_page(context.path, study, title=title, figures=figures)
