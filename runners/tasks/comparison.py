"""The experiments of one spec, compared, as an artifact: four tables, figures/*.png, report.html.

The same inputs give the same bytes: no run's name, dates or machines.
"""

from __future__ import annotations

from boomspec.core.tasks import Comparison
from runners.report.collect import collect
from runners.report.page import write_page
from runners.runtime.context import Context


def run(context: Context[Comparison]) -> None:
    figures = context.path / "figures"
    figures.mkdir()
    study = collect(context.record, lambda role: context.inputs[role].folder)
    write_page(context.path, study, title=f"{len(study.trials)} experiments compared", figures=figures)
