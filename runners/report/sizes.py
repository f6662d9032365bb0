"""What a page knows of every size of a family, for its slider: layers, memory, numbers, texts, how to export it.

Out: JSON, one entry for each experiment (of those that differ in their seed only: one), and in it one for each size.
The sizes of a run are all that its family has, measured or not; where only numbers are known, those with numbers.
"""

import re
import shlex
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from boomspec.core.errors import redact
from boomspec.core.graph import TaskGraph
from boomspec.core.layers import STUDENT
from boomspec.core.sizes import Lineage, Member, folder_name, labels
from boomspec.store import DEFAULT_STORE, Store
from runners.report.format import count, number, size
from runners.report.study import FAMILY, Group, Point, Row, Size, Study, Trial, curve_of, model_of

MOST_EXPERIMENTS = 60  # of a sweep, in their order
_MOST_TEXTS, _MOST_LETTERS = 3, 1500  # of a size, of a text
Json = dict[str, Any]


def sizes_of(study: Study, families: Mapping[str, Lineage] | None = None, run: str = "", store: str = "") -> list[Json]:
    """`families`: by the label of the experiment. `run`: what `boomspec export` calls the run; empty where there is
    none. `store`: its options that name the store."""
    found = []
    for group in study.groups[:MOST_EXPERIMENTS]:
        trial = group.trials[0]
        lineage = (families or {}).get(trial.label)
        named = f"{run}#{trial.label}" if trial.label and run else run
        sizes = _of_family(lineage, named, store) if lineage is not None else list(_of_cells(trial))
        ends = {key: _ends(group, *key) for key in _measured(study, group)}
        for one in sizes:
            model = _model(trial, one)
            place = _place(trial, model)
            one["values"] = [] if place is None else list(_values(study, group, place, ends))
            one |= _deployed(study, trial, model)
            one["parametersText"], one["bytesText"] = count(one["parameters"]), size(one["bytes"])
        if len(sizes) > 1:
            label = group.label if study.axes else ""
            found.append({"label": label, "sizes": sizes})
    return found


def known_families(graph: TaskGraph) -> dict[str, Lineage]:
    return {one.label: one.family for one in graph.experiments if one.family is not None}


def store_options(store: Store) -> str:
    """What names the store on a command line; nothing for the one that is used by itself."""
    is_default = "://" not in store.address and Path(store.address).name == DEFAULT_STORE
    return "" if is_default else f" --store {shlex.quote(redact(store.address))}"


def _of_family(lineage: Lineage, run: str, store: str) -> list[Json]:
    names, found = labels(lineage.members), []
    own = (lineage.trained,) if all(one.plan != lineage.trained.plan for one in lineage.members) else ()
    for member in sorted((*own, *lineage.members), key=lambda one: (one.parameters, one.patched)):
        is_student = member.plan == lineage.trained.plan
        kind = "student" if is_student else "teacher" if member.is_teacher else "interpolated"
        entry: Json = {"name": f"{member.layers} layers" if member in own else names[member.patched], "kind": kind}
        entry |= {"layers": member.layers, "parameters": member.parameters, "bytes": member.bytes}
        entry["share"] = member.parameters / lineage.members[-1].parameters
        entry["plan"] = list(_plan(lineage, member))
        entry["cache"] = _cache(lineage, member)
        if run:
            asked = kind if kind != "interpolated" else _size_text(lineage, member)
            folder = f"{run.partition('#')[0].rpartition('-')[0] or run}-{folder_name(lineage, member)}"
            if member in own:
                folder = f"{run.partition('#')[0].rpartition('-')[0] or run}-student"
            entry["export"] = f"boomspec export {shlex.quote(run)} {shlex.quote(asked)} {shlex.quote(folder)}{store}"
        found.append(entry)
    return found


def _size_text(lineage: Lineage, member: Member) -> str:
    """What names exactly this member: its layers, where no other one has as many; else its parameters."""
    alike = [one for one in lineage.members if one.layers == member.layers]
    return f"{member.layers} layers" if len(alike) == 1 else f"{member.parameters / 1e6:.10g}M"


def _plan(lineage: Lineage, member: Member) -> Iterator[tuple[str, int, int]]:
    """Of each layer: its owner, its index there, and for how many layers of the teacher it stands."""
    stops = (*lineage.kept[1:], len(lineage.members[-1].plan))
    for layer in member.plan:
        span = stops[layer.index] - lineage.kept[layer.index] if layer.owner == STUDENT else 1
        yield layer.owner, layer.index, span


def _cache(lineage: Lineage, member: Member) -> list[tuple[int, int | None, int]]:
    """Bytes of a token, window and number of the layers that cache alike; a student's layer caches as its teacher's."""
    if not lineage.cache:
        return []
    places = [lineage.kept[layer.index] if layer.owner == STUDENT else layer.index for layer in member.plan]
    alike = groupby(sorted((lineage.cache[i] for i in places), key=lambda one: (one.bytes, one.window or 0)))
    return [(one.bytes, one.window, len(list(own))) for one, own in alike]


def _of_cells(trial: Trial) -> Iterator[Json]:
    """The family's models that have cells, where no more is known of it."""
    cells = {(cell.parameters, cell.layers, cell.series): cell for cell in trial.cells if curve_of(cell) == FAMILY}
    largest = max((parameters for parameters, _, _ in cells), default=0)
    for (parameters, layers, series), cell in sorted(cells.items()):
        entry = {"name": f"{layers} layers", "kind": series, "layers": layers, "parameters": parameters}
        yield {**entry, "bytes": cell.bytes, "share": parameters / largest, "plan": [], "cache": []}


def _model(trial: Trial, one: Mapping[str, Any]) -> str | None:
    """The label of the model that was measured of a size. Two members may be alike in layers and parameters."""
    wanted = one["layers"], one["parameters"], one["kind"]
    alike = [model_of(cell) for cell in trial.cells if (cell.layers, cell.parameters, cell.series) == wanted]
    named = f"{one['kind']} {one['name']}"
    has_twin = "," in one["name"]  # see `boomspec.core.sizes.labels`
    return named if named in alike else next((model for model in alike if not has_twin), None)


def _place(trial: Trial, model: str | None) -> Size | None:
    """The place of a model on the curve."""
    return next((place for cell, place in trial.cells.items() if model_of(cell) == model), None)


# --- numbers ---------------------------------------------------------------------------------------


def _measured(study: Study, group: Group) -> list[tuple[str, str]]:
    """Measures and metrics, those that are drawn first."""
    found = dict.fromkeys((row.measure, row.metric) for row in group.rows if curve_of(row.cell) == FAMILY)
    order = {measure: place for place, measure in enumerate(study.measures)}

    def rank(key: tuple[str, str]) -> tuple[bool, int]:
        measure, metric = key
        drawn = measure in order and study.primary[measure] == metric
        return not drawn, order.get(measure, len(order))

    return sorted(found, key=rank)


def _ends(group: Group, measure: str, metric: str) -> tuple[float, float] | None:
    """The values of student and teacher."""
    means = []
    for series in ("student", "teacher"):
        rows = [row for row in group.rows if (row.measure, row.metric, row.cell.series) == (measure, metric, series)]
        if not rows:
            return None
        means.append(Point(rows).mean)
    return means[0], means[1]


def _values(
    study: Study, group: Group, place: Size, ends: Mapping[tuple[str, str], tuple[float, float] | None]
) -> Iterator[Json]:
    for (measure, metric), between in ends.items():
        point = group.points(measure, metric).get(place)
        if point is None:
            continue
        rows = [row for row in group.rows if (row.measure, row.metric, row.size) == (measure, metric, place)]
        stderr = next((row.stderr for row in rows if curve_of(row.cell) == FAMILY), None)
        entry: Json = {
            "name": f"{'held-out' if measure == 'held_out' else measure} {metric.replace('_', ' ')}",
            "arrow": study.arrow(measure, metric),
            "main": measure in study.measures and metric == study.primary[measure],
            "text": number(point.mean),
        }
        if point.spread:
            entry["error"] = f"{number(point.spread[0])} to {number(point.spread[1])}"
        elif stderr:
            entry["error"] = f"± {number(stderr)}"
        if between is not None and between[0] != between[1]:
            entry["at"] = round((point.mean - between[0]) / (between[1] - between[0]), 4)
            entry["ends"] = [number(value) for value in between]
        yield entry


def _deployed(study: Study, trial: Trial, model: str | None) -> Json:
    """Speed, memory and texts, of a size where they were measured."""
    speeds = [row for row in trial.speeds if model_of(row.cell) == model]
    written = [found for found in trial.written if model_of(found.cell) == model]
    texts = [text for found in written for text in found.texts if text.sample == 0][:_MOST_TEXTS]
    lines = [
        [speed_name(row.metric), shown_speed(row), study.arrow(row.measure, row.metric), row.yardstick]
        for row in speeds
    ]
    shown = [
        {
            "prompt": text.prompt[-_MOST_LETTERS:],
            "text": text.text[:_MOST_LETTERS],
            "tokens": text.tokens,
            "ended": text.ended,
        }
        for text in texts
    ]
    return {name: value for name, value in (("speed", lines), ("texts", shown)) if value}


def speed_name(metric: str) -> str:
    """What a metric of speed or memory is called where its numbers have their units: "decode", "peak memory"."""
    return re.sub("_tokens_per_second$|_seconds$|_bytes$", "", metric).replace("_", " ")


def shown_speed(row: Row) -> str:
    """A number of speed or memory with its unit."""
    if row.metric.endswith("_bytes"):
        return size(row.value)
    if row.metric.endswith("_seconds"):
        return f"{1000 * row.value:,.3g} ms" if row.value < 1 else f"{row.value:,.3g} s"
    return f"{row.value:,.0f} tokens/s"
