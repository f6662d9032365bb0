"""Write the report of a run, or of a `report` or `comparison` task, into a folder.

report.html   everything, self-contained: drawings and tables set into `page.html.jinja`
*.png         the figures
and the files of `runners.report.tables`.
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from matplotlib.figure import Figure

from boomspec.core.graph import TaskGraph
from boomspec.core.tasks import Comparison, Report
from boomspec.store import Store
from runners.report import tables
from runners.report.collect import collect
from runners.report.compare import against_references
from runners.report.figures import CONTROLS, MOST_LINES, difference_lines, size_figure, size_lines, svg, write_png
from runners.report.findings import findings, outcome
from runners.report.process_figures import search_figure, similarity_figure, training_figure
from runners.report.run_notes import NO_NOTES, Notes, notes_of, why
from runners.report.study import MOST_IN_RANGE, SERIES, Study
from runners.report.sweep_figures import MOST_PANELS, axis_figure, grid_figure, marginal_figure, numeric, panels_of
from runners.runtime.job import fetch_numbers

TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=select_autoescape(["html.jinja"]),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
PAGE = "report.html"
_MOST_EMBEDDED = 2_000_000  # characters of one download; a page with more is slow to open
_MOST_MISSING = 200
_WIDTH, _SMALL = 7.6, 5.4  # of a figure, in inches: the page shows small ones side by side
_FEW_VALUES = 3  # of a number from which a figure over it says something
_FAMILY = "the student, the sizes built from it without training, and the teacher."


@dataclass(frozen=True)
class Drawing:
    """One figure with its place on the page; `name` is also the name of its file."""

    group: str  # hero, others, searches, trainings or similarities
    name: str
    title: str
    caption: str
    figure: Figure = field(repr=False)

    @cached_property
    def svg(self) -> str:
        return svg(self.figure, name=self.name)


def draw(study: Study) -> list[Drawing]:
    """All figures that the results allow, in the order of the page: the main measure has the large ones."""
    found: list[Drawing] = []
    for measure in study.measures:
        found += _of_several(study, measure) if study.axes else [_of_one(study, measure)]
    found += _of_process(study)
    used: Counter[str] = Counter()
    for place, drawing in enumerate(found):  # of those that would lie in one file the later ones are numbered
        used[drawing.name] += 1
        if used[drawing.name] > 1:
            found[place] = replace(drawing, name=f"{drawing.name}-{used[drawing.name]}")
    return found


def _drawing(group: str, kind: str, label: str, title: str, caption: str, figure: Figure) -> Drawing:
    name = "".join(c if c.isalnum() or c in "-_" else "-" for c in label.lower())
    return Drawing(group, f"{kind}-{name}", title, caption.strip(), figure)


def _of_one(study: Study, measure: str) -> Drawing:
    trial, name, main = study.trials[0], study.name(measure), measure == study.measures[0]
    caption = f"Model size against {name}."
    if main:
        caption += f" The blue line is one family: {_FAMILY} Dashed lines mark student and teacher."
        if any(trial.series(control, measure, study.primary(measure)) for control in CONTROLS):
            caption += " Where the control is out of view, an arrow gives its value."
    if any(row.stderr for row in trial.rows if row.measure == measure):
        caption += " Bars are one standard error."
    small = not main and len(study.measures) > 2
    figure = size_figure(study, measure, **({"width": _SMALL, "height": 3.9} if small else {}))
    return _drawing("hero" if main else "others", "size", measure, name, caption, figure)


def _of_process(study: Study) -> Iterator[Drawing]:
    for search in study.searches:
        caption = "KL of each candidate to the teacher on the calibration text, by how many blocks are patched."
        yield _drawing("searches", "search", search.label, search.label, caption, search_figure(search))
    for training in (training for training in study.trainings if training.steps):
        caption = "Every optimiser step (faint) and its running mean. Terms are drawn without their weights."
        yield _drawing("trainings", "training", training.label, training.label, caption, training_figure(training))
    for training in (training for training in study.trainings if training.pairs):
        caption = "Mean cosine similarity of aligned hidden states, before and after distillation, on the same text."
        figure = similarity_figure(training)
        yield _drawing("similarities", "similarity", training.label, training.label, caption, figure)


def _of_several(study: Study, measure: str) -> Iterator[Drawing]:
    """Few groups: against size, and against their reference. Many: over what was varied, in one axis, two or more."""
    main, few, name = measure == study.measures[0], len(study.groups) <= MOST_LINES, study.name(measure)
    width = _SMALL if not main and (few or len(study.measures) > 2) else _WIDTH
    found: list[tuple[str, str, Figure | None]] = []
    axis = swept_axis(study)
    if not study.sizes(measure):
        return  # only baselines have results
    if few:
        lines = size_lines(study, measure, width=width)
        found.append(("size", f"Model size against {name}. {_lines(study) if main else ''}", lines))
        found.append(("difference", _difference_caption(study, measure), difference_lines(study, measure, width=width)))
    if axis is not None and len(panels_of(study, axis)) <= MOST_PANELS:
        values = [numeric(value) for value in study.axes[axis]]
        if not few or (None not in values and len(values) >= _FEW_VALUES):
            caption = f"{axis} against {name}, at a few sizes. {_spread(study) if main else ''}"
            found.append(("axis", caption, axis_figure(study, measure, axis, width=width)))
    elif not few and len(study.swept) == 2:
        axes = " and ".join(study.swept)
        caption = f"{name} over {axes}: means over seeds. The star marks the best, its value above."
        found.append(("grid", caption, grid_figure(study, measure, width=width)))
    elif not few:
        caption = f"Each axis against {name}. A dot is one experiment's mean over seeds, a dash the median of a value."
        found.append(("axes", caption, marginal_figure(study, measure, width=width)))
    group = "hero" if main else "others"
    for kind, caption, figure in found:
        if figure is not None:
            yield _drawing(group, kind, measure, name, caption, figure)


def swept_axis(study: Study) -> str | None:
    """The axis along which a figure is drawn: the one with the most values, one of numbers before one of names."""

    def worth(name: str) -> tuple[bool, int]:
        return all(numeric(value) is not None for value in study.axes[name]), len(study.axes[name])

    return max(study.swept, key=worth, default=None)


def _lines(study: Study) -> str:
    first = study.groups[0]
    grey = f" Grey: the baselines of {first.label}." if first.baselines(study.measures[0]) else ""
    return f"Each line is one family: {_FAMILY} {_spread(study)}{grey}"


def _spread(study: Study) -> str:
    """What a mean is taken over, and what is drawn around it."""
    low, high = study.seeds
    if high == 1:
        return "One seed each, so there is no spread to draw."
    seeds = f"{high} seeds" if low == high else f"{low} to {high} seeds"
    band = "from the lowest to the highest seed" if high <= MOST_IN_RANGE else "one standard deviation to each side"
    if low <= MOST_IN_RANGE < high:
        band += f" (up to {MOST_IN_RANGE} seeds: from the lowest to the highest)"
    return f"Lines are means over {seeds}, bands reach {band}."


def _difference_caption(study: Study, measure: str) -> str:
    names = {other.label for _, other, _ in against_references(study, measure)}
    reference = names.pop() if len(names) == 1 else "base at the same point of the sweep"
    bars = "from the lowest to the highest seed" if study.seeds[1] > 1 else "two standard errors over the items"
    return (
        f"By how much each is better on {study.name(measure)} than {reference}, at the same seed. Bars reach {bars}; "
        "filled marks are clear differences, open ones are not. Sizes at which both are one artifact are left out."
    )


def render(
    study: Study,
    *,
    title: str,
    drawings: Sequence[Drawing],
    files: Mapping[str, str],
    notes: Notes = NO_NOTES,
) -> str:
    """The page's HTML. `files`: texts of the files that it offers for download; large ones lie beside it."""
    encoded = {name: base64.b64encode(text.encode()).decode() for name, text in files.items()}
    measures = list(dict.fromkeys([*study.measures, *(missing.measure for _, missing in study.missing())]))
    subtasks = [name for name in dict.fromkeys(row.measure for row in study.rows()) if name not in measures]
    missing = tables.missing_lines(study)
    one: dict[str, Any] = {}
    if not study.axes:
        one = {"models": tables.model_table(study, measures), "subtasks": tables.model_table(study, subtasks)}
        one["gains"] = tables.gains_table(study)
    return TEMPLATES.get_template("page.html.jinja").render(
        title=title,
        outcome=outcome(study),
        findings=findings(study),
        drawings=drawings,
        series=SERIES,
        tables=[tables.group_table(study, measure) for measure in study.measures] if study.axes else [],
        one=one,
        seeds=study.seeds[1],
        missing=missing[:_MOST_MISSING],
        unlisted=max(0, len(missing) - _MOST_MISSING),
        axes=study.axes,
        downloads={name: data if len(data) <= _MOST_EMBEDDED else "" for name, data in encoded.items()},
        notes=notes,
    )


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
    drawings, files = draw(study), tables.files(study, title)
    for drawing in drawings:
        write_png(drawing.figure, figures / f"{drawing.name}.png")
    html = render(study, title=title, drawings=drawings, files=files, notes=notes)
    for name, text in {**files, PAGE: html}.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder / PAGE
