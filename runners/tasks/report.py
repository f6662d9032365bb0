"""The report of a family, or a comparison of experiments, as an artifact: tables, figures/, report.html.

The same inputs give the same bytes: no run's name, dates or machines.
"""

from boomspec.core.tasks import Comparison, Report
from runners.report.collect import collect
from runners.report.page import write_page
from runners.runtime.context import Context


def run(context: Context[Report] | Context[Comparison]) -> None:
    figures = context.path / "figures"
    figures.mkdir()
    study = collect(context.record, lambda role: context.inputs[role].folder)
    if isinstance(context.record, Comparison):
        title = f"{len(study.trials)} experiments compared"
    else:
        layers = [cell.layers for cell in context.record.cells]
        title = f"A model family of {min(layers)} to {max(layers)} layers" if layers else "A model family"
    write_page(context.path, study, title=title, figures=figures)
