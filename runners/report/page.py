"""Write the report of a run, or of a `report` or `comparison` task, into a folder.

report.html           everything, self-contained and interactive: `page.html.jinja`, its style and script, the figures
                      as Vega-Lite, and the library that draws them
*.png, *.svg, *.pdf   the figures
and the files of `runners.report.tables`.
"""

import base64
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from boomspec.core.graph import TaskGraph
from boomspec.core.losses import LOSSES
from boomspec.core.tasks import Comparison, Report
from boomspec.store import Store
from runners.report import tables
from runners.report.chart import DARK, INK, LIGHT, SMALL, WIDTH, Figure, interactive, sample
from runners.report.closing import SUMMARY, closing
from runners.report.collect import collect
from runners.report.compare import against_references
from runners.report.cost_figures import cost_figure
from runners.report.deployment import speed_table, texts_side_by_side
from runners.report.during_figure import held_out_figure
from runners.report.figures import CONTROLS, LOOKS, MOST_LINES, difference_lines, size_figure, size_lines
from runners.report.findings import findings, outcome
from runners.report.format import count, number, signed, size
from runners.report.process_figures import search_figure, similarity_figure, training_figure
from runners.report.run_notes import Notes, notes_of, why
from runners.report.sizes import known_families, shown_speed, sizes_of, speed_name, store_options
from runners.report.study import MOST_IN_RANGE, SERIES, Study, series_name
from runners.report.sweep_figures import MOST_PANELS, axis_figure, grid_figure, marginal_figure, numeric, panels_of
from runners.report.vega import FORMATS, library, library_version, write_figure
from runners.runtime.job import fetch_numbers

_HERE = Path(__file__).parent
TEMPLATES = Environment(
    loader=FileSystemLoader(_HERE),
    autoescape=select_autoescape(["html.jinja"]),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
TEMPLATES.filters |= {"number": number, "signed": signed, "count": count, "size": size, "model": series_name}
PAGE = "report.html"
_MOST_EMBEDDED = 2_000_000  # characters of one download; a page with more is slow to open
_MOST_MISSING = 200
_FEW_VALUES = 3  # of a number from which a figure over it says something
_FAMILY = "the student, the sizes built from it without training, and the teacher."


class Drawing(NamedTuple):
    """One figure with its place on the page; `name` is also the name of its file."""

    group: str  # hero, others, costs, searches, trainings or similarities
    name: str
    title: str
    caption: str
    figure: Figure


_Parts = Iterator[tuple[str, str, str, str, str, Figure]]  # group, kind, label, title, caption, figure


def draw(study: Study) -> list[Drawing]:
    """All figures that the results allow, in the order of the page: the main measure has the large ones."""
    drawings: list[Drawing] = []
    used: Counter[str] = Counter()
    parts = [_of_several(study, measure) if study.axes else _of_one(study, measure) for measure in study.measures]
    for group, kind, label, title, caption, figure in chain(*parts, _of_costs(study), _of_process(study)):
        name = f"{kind}-" + "".join(c if c.isalnum() or c in "-_" else "-" for c in label.lower())
        used[name] += 1  # of those that would lie in one file the later ones are numbered
        name += f"-{used[name]}" if used[name] > 1 else ""
        drawings.append(Drawing(group, name, title, caption.strip(), figure))
    return drawings


def _of_one(study: Study, measure: str) -> _Parts:
    trial, name, main = study.trials[0], study.name(measure), measure == study.measures[0]
    caption = f"Model size against {name}."
    if main:
        caption += f" The blue line is one family: {_FAMILY} Dashed lines mark student and teacher."
        if any(trial.series(control, measure, study.primary[measure]) for control in CONTROLS):
            caption += " Where the control is out of view, an arrow gives its value."
    if any(row.stderr for row in trial.rows if row.measure == measure):
        caption += " Bars are one standard error."
    width = SMALL if not main and len(study.measures) > 2 else WIDTH
    yield "hero" if main else "others", "size", measure, name, caption, size_figure(study, measure, width=width)


def _of_costs(study: Study) -> _Parts:
    """What sizes cost where they are used: one figure for each measure."""
    on = "; ".join(study.machines)
    for measure in study.measures:
        if (figure := cost_figure(study, measure)) is not None:
            what = "Each point is one size of the family, named by its layers."
            caption = f"{what} Time per token: one over the tokens/s of all sequences together. Measured on {on}."
            yield "costs", "cost", measure, study.name(measure), caption, figure


def _of_process(study: Study) -> _Parts:
    for label, search in ((search.label, search) for search in study.searches):
        caption = "KL of each candidate to the teacher on the calibration text, by how many blocks are patched."
        yield "searches", "search", label, label, caption, search_figure(search)
    for label, training in ((training.label, training) for training in study.trainings if training.steps):
        caption = "Every optimiser step (faint) and its running mean. Terms are drawn without their weights."
        yield "trainings", "training", label, label, caption, training_figure(training)
    for label, training in ((training.label, training) for training in study.trainings if training.held_out):
        title = f"{label}: held-out loss while it is trained"
        caption = "Of the student, and of sizes that are made with it as it is at that step, in front of each step."
        yield "trainings", "during", label, title, caption, held_out_figure(training)
    for label, training in ((training.label, training) for training in study.trainings if training.pairs):
        caption = "Mean cosine similarity of aligned hidden states, before and after distillation, on the same text."
        yield "similarities", "similarity", label, label, caption, similarity_figure(training)


def _of_several(study: Study, measure: str) -> _Parts:
    """Few groups: against size, and against their reference. Many: over what was varied, in one axis, two or more."""
    if not study.sizes(measure):
        return  # only baselines have results
    main, few, name = measure == study.measures[0], len(study.groups) <= MOST_LINES, study.name(measure)
    width = SMALL if not main and (few or len(study.measures) > 2) else WIDTH
    group, label, title = "hero" if main else "others", measure, name
    # Along the axis with the most values; one of numbers goes before one of names.
    worth = {name: (None not in map(numeric, values), len(values)) for name, values in study.axes.items()}
    axis = max(study.swept, key=worth.__getitem__, default=None)
    if few:
        caption = f"Model size against {name}."
        if main:
            caption += f" Each line is one family: {_FAMILY} {_spread(study)}"
            baselines = study.groups[0].baselines(measure)
            caption += f" Grey: the baselines of {study.groups[0].label}." if baselines else ""
        yield group, "size", label, title, caption, size_lines(study, measure, width=width)
        if (figure := difference_lines(study, measure, width=width)) is not None:
            names = {other.label for _, other, _ in against_references(study, measure)}
            reference = names.pop() if len(names) == 1 else "base at the same point of the sweep"
            bars = "from the lowest to the highest seed" if study.seeds[1] > 1 else "two standard errors over the items"
            caption = (
                f"By how much each is better on {name} than {reference}, at the same seed. Bars reach {bars}; filled "
                "marks are clear differences, open ones are not. Sizes at which both are one artifact are left out."
            )
            yield group, "difference", label, title, caption, figure
    if axis is not None and len(panels_of(study, axis)) <= MOST_PANELS:
        values = [numeric(value) for value in study.axes[axis]]
        if not few or (None not in values and len(values) >= _FEW_VALUES):
            caption = f"{axis} against {name}, at a few sizes. {_spread(study) if main else ''}"
            yield group, "axis", label, title, caption, axis_figure(study, measure, axis, width=width)
    elif not few and len(study.swept) == 2:
        caption = (
            f"{name} over {' and '.join(study.swept)}: means over seeds. The star marks the best, its value above."
        )
        yield group, "grid", label, title, caption, grid_figure(study, measure, width=width)
    elif not few:
        caption = f"Each axis against {name}. A dot is one experiment's mean over seeds, a dash the median of a value."
        yield group, "axes", label, title, caption, marginal_figure(study, measure, width=width)


def _spread(study: Study) -> str:
    low, high = study.seeds
    if high == 1:
        return "One seed each, so there is no spread to draw."
    seeds = f"{high} seeds" if low == high else f"{low} to {high} seeds"
    band = "from the lowest to the highest seed" if high <= MOST_IN_RANGE else "one standard deviation to each side"
    if low <= MOST_IN_RANGE < high:
        band += f" (up to {MOST_IN_RANGE} seeds: from the lowest to the highest)"
    return f"Lines are means over {seeds}, bands reach {band}."


def render(
    study: Study,
    *,
    title: str,
    drawings: Sequence[Drawing],
    files: Mapping[str, str],
    terms: Sequence[tables.Table] = (),
    notes: Notes | None = None,
    figures: str = "",
    sizes: Sequence[dict[str, Any]] | None = None,
) -> str:
    """The page's HTML.

    `files`: texts of the files that it offers for download; large ones lie beside it. `figures`: where those of the
    figures are, from the page. `sizes`: what the slider shows, `runners.report.sizes`.
    """
    encoded = {name: base64.b64encode(text.encode()).decode() for name, text in files.items()}
    measures = list(dict.fromkeys([*study.measures, *(missing.measure for _, missing in study.missing)]))
    subtasks = [name for name in dict.fromkeys(row.measure for row in study.rows) if name not in measures]
    missing = tables.missing_lines(study)
    shown_sizes = sizes_of(study) if sizes is None else sizes
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
        terms=terms,
        deltas=study.deltas,
        losses=LOSSES,
        downloads={name: data if len(data) <= _MOST_EMBEDDED else "" for name, data in encoded.items()},
        notes=notes or Notes(),
        style=_style(),
        script=(_HERE / "page.js").read_text(encoding="utf-8"),
        sizes=shown_sizes,
        known=_in_script(shown_sizes),
        costs=[table for trial in study.trials if (table := speed_table(trial))["lines"]] if not study.axes else [],
        written=texts_side_by_side(study.trials[0]) if not study.axes and study.trials else [],
        shown_speed=shown_speed,
        speed_name=speed_name,
        specifications=_in_script({drawing.name: interactive(drawing.figure) for drawing in drawings}),
        library=library().replace("</script", "<\\/script"),
        versions=library_version(),
        sample=sample,
        formats=FORMATS,
        figures=figures,
    )


def _style() -> str:
    """The page's style, in the colours of figures: light, and dark where the system or the reader wants it."""
    light = {**LIGHT, "wash": "#f6f5f1", "accent": LIGHT["blue"], "alarm": "#b3400a"}
    dark = {**DARK, "wash": "#1d2026", "accent": DARK["sky"], "alarm": "#ff9a62"}
    plain, night = (" ".join(f"--{name}: {color};" for name, color in colors.items()) for colors in (light, dark))
    night += " color-scheme: dark;"
    dots = "\n".join(f".{name} .dot {{ color: {LOOKS[name].color if name in LOOKS else INK}; }}" for name in SERIES)
    rules = (
        f":root {{ {plain} color-scheme: light; }}",
        f"@media screen and (prefers-color-scheme: dark) {{ :root:not([data-theme=light]) {{ {night} }} }}",
        f"@media screen {{ :root[data-theme=dark] {{ {night} }} }}",
        (_HERE / "page.css").read_text(encoding="utf-8") + dots,
    )
    return "\n".join(rules)


def _in_script(value: Any) -> str:
    """JSON that can stand in a <script>, whatever its texts are."""
    text = json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def publish_run(graph: TaskGraph, store: Store, run_folder: Path, failures: dict[str, str]) -> Path:
    """Write `<run_folder>/report/` from what the store holds. `failures`: why tasks have no artifact, by task id."""
    node = next(node for node in graph.nodes.values() if isinstance(node.task.record, Report | Comparison))
    record, inputs = node.task.record, node.task.inputs
    assert isinstance(record, Report | Comparison)
    found = fetched(graph, store, inputs)
    missing = {role: why(graph, task, failures) for role, task in inputs.items() if role not in found}
    study = collect(record, lambda role: found.get(role) or missing[role])
    folder = run_folder / "report"
    folder.mkdir(parents=True, exist_ok=True)
    notes = notes_of(graph, store, failures, several=bool(study.axes))
    sizes = sizes_of(study, known_families(graph), run_folder.name, store_options(store))
    (folder / SUMMARY).write_text(closing(study, sizes), encoding="utf-8")
    return write_page(folder, study, title=graph.name, figures=folder, notes=notes, sizes=sizes)


def fetched(graph: TaskGraph, store: Store, inputs: Mapping[str, str]) -> dict[str, Path]:
    """By role of these inputs of a report a folder on this machine, where the store has the artifact."""
    keys = {role: (graph.nodes[task].task.kind, task) for role, task in inputs.items() if task in graph.nodes}
    folders = fetch_numbers(store, store.records(set(keys.values())))
    return {role: folders[key] for role, key in keys.items() if key in folders}


def write_page(
    folder: Path,
    study: Study,
    *,
    title: str,
    figures: Path,
    notes: Notes | None = None,
    sizes: Sequence[dict[str, Any]] | None = None,
) -> Path:
    """Write a study's page and tables into `folder`, its figures into `figures`."""
    drawings, terms = draw(study), tables.terms_of(study, notes.terms if notes else ())
    files = tables.files(study, title, notes.trainings if notes else (), terms)
    for drawing in drawings:
        write_figure(drawing.figure, figures / drawing.name)
    beside = "" if figures == folder else f"{figures.relative_to(folder).as_posix()}/"
    html = render(
        study, title=title, drawings=drawings, files=files, terms=terms, notes=notes, figures=beside, sizes=sizes
    )
    for name, text in {**files, PAGE: html}.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder / PAGE
