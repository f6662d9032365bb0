"""What `boomspec show` shows: each experiment of a spec, a compiled graph or a run with every value written out.

A value that was not written is marked as a default, one that a base file or a variant sets with where it is, and
one that a rule became with the rule. What cannot be known here (no network, a search that has not run) is said.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from boomspec.compile.check import check_spec
from boomspec.compile.compiler import answers_of, compile_experiments
from boomspec.compile.family import Family
from boomspec.compile.resolved import FOLLOWING, resolve, tasks_by_name
from boomspec.core.errors import BoomspecError, SpecError
from boomspec.core.graph import Experiment
from boomspec.models.hub import UnreachableError
from boomspec.plan.changes import Difference, differences
from boomspec.plan.run import open_run, run_folder, store_of
from boomspec.spec.document import Document
from boomspec.spec.experiments import load_experiments, split_address
from boomspec.spec.spec_file import Spec, SpecFile
from boomspec.spec.yaml_writer import Path as Place
from boomspec.spec.yaml_writer import inline, lines
from boomspec.store import Where, open_store

SHOW_SCHEMA_VERSION = 1
_WORKED_OUT = (*FOLLOWING, ("sources",), ("interpolate", "sizes"))


@dataclass(frozen=True)
class Shown:
    """One experiment. `file` is None where it was read from a graph: what was written is not known there."""

    label: str
    axes: dict[str, str]
    meaning: dict[str, Any]
    file: SpecFile | None = None

    def text(self) -> str:
        """The experiment as YAML, with comments."""
        plain = {key: value for key, value in self.meaning.items() if key != "written"}
        return "\n".join(lines(plain, self.comment)).strip() + "\n"

    def comment(self, place: Place) -> str:
        """What is to be said about one value; "" where it stands in the spec as it is shown."""
        place = place[:2] if place[:2] == ("interpolate", "sizes") else place
        written = self.meaning.get("written", {})
        rules = {("student", "keep"): written.get("keep"), **_sizes(written)}
        if (rule := rules.get(place)) is not None and rule != _at(self.meaning, place):
            return self._join(f"from {inline(rule)}", place)
        if any(place[: len(start)] == start for start in _WORKED_OUT) and place not in rules:
            return ""
        if self.file is None:
            return ""
        return self._join("" if _holds(self._said, place) else "default", place)

    @cached_property
    def _said(self) -> dict[str, Any]:
        return {} if self.file is None else said(self.file.spec)

    def defaults(self) -> list[str] | None:
        """The fields that were not written; None where that is not known."""
        if self.file is None:
            return None
        return [".".join(place) for place in _leaves(self.meaning) if "default" in self.comment(place)]

    def _join(self, text: str, place: Place) -> str:
        origin = "" if self.file is None or text == "default" else _origin(self.file.document, place)
        return ", ".join(filter(None, [text, origin]))


@dataclass(frozen=True)
class Review:
    """The experiments; `unknown`: what could not be found out, and why."""

    name: str
    experiments: tuple[Shown, ...]
    unknown: str = ""

    def differing(self) -> list[tuple[Shown, list[Difference]]]:
        """Each experiment but the first one, and how it differs from that."""
        first, *others = self.experiments
        return [(other, differences(first.meaning, other.meaning)) for other in others]

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": SHOW_SCHEMA_VERSION,
            "name": self.name,
            "unknown": self.unknown or None,
            "experiments": [
                {"label": e.label, "axes": e.axes, "meaning": e.meaning, "defaults": e.defaults()}
                for e in self.experiments
            ],
        }


def _is_unreachable(error: BaseException | None) -> bool:
    """Whether an error comes of the hub having given no answer."""
    return error is not None and (isinstance(error, UnreachableError) or _is_unreachable(error.__cause__))


def review(address: Path, store: Where | None) -> Review:
    """What a spec, SPEC#LABEL, a graph file or a run's folder means. Raises SpecError or BoomspecError."""
    path, _ = split_address(address)
    if run_folder(path, None if store is None else open_store(store)) is not None or path.suffix == ".json":
        graph = open_run(address, store).graph
        return Review(graph.name, tuple(map(_of_graph, graph.experiments)), _waiting(graph.experiments))
    files = load_experiments(address)
    by_label = {file.label: file for file in files}
    try:
        compiled = compile_experiments(files, answers_of(store_of(files[0], store)))
    except BoomspecError as error:
        if isinstance(error, SpecError) and not _is_unreachable(error):
            raise
        # Without a network, or without lm-eval, most of it can be shown all the same.
        families = {file.label: check_spec(file) for file in files}
        shown = tuple(Shown(f.label, f.axes, _without_sources(f, families[f.label]), f) for f in files)
        what = "what is read" if all(families.values()) else "layers, sizes and what is read"
        why = error.problems[0].message if isinstance(error, SpecError) else error.message
        return Review(files[0].spec.name, shown, f"{what}: {why}")
    found = compiled.graph.experiments
    shown = tuple(Shown(e.label, e.axes, e.meaning, by_label[e.label]) for e in found)
    return Review(compiled.graph.name, shown, _waiting(found))


def said(spec: Spec) -> dict[str, Any]:
    """What a spec says itself, without defaults, in the shape of its meaning."""
    plain = spec.model_dump(mode="json", exclude_unset=True)
    plain["baselines"] = {kind: settings for item in plain.get("baselines", ()) for kind, settings in item.items()}
    if "tasks" in (plain.get("evaluate") or {}):
        plain["evaluate"]["tasks"] = tasks_by_name(plain["evaluate"]["tasks"], spec)
    return plain


def _without_sources(file: SpecFile, family: Family | None) -> dict[str, Any]:
    return {key: value for key, value in resolve(file.spec, family).to_json().items() if key != "sources"}


def _of_graph(experiment: Experiment) -> Shown:
    return Shown(experiment.label, experiment.axes, experiment.meaning)


def _waiting(experiments: tuple[Experiment, ...]) -> str:
    waiting = [experiment.label for experiment in experiments if experiment.family is None]
    if not waiting:
        return ""
    named = f": {', '.join(waiting)}" if any(waiting) else ""
    return f"layers or their order, before a search has run{named}"


def _sizes(written: dict[str, Any]) -> dict[Place, Any]:
    """What stood in the spec where layers and sizes stand now."""
    return {("interpolate", key): value for key, value in written.get("interpolate", {}).items()}


def _origin(document: Document, place: Place) -> str:
    """Where a value comes from, unless it stands in the file itself."""
    layer: Document | None = document
    while layer is not None:
        if layer.title and any(edit.is_leaf and _covers(edit.location, place) for edit in layer.edits):
            return layer.title
        layer = layer.below
    found = document.nearest(place)
    return "" if found.file == document.file else f"{found.file.name}:{found.line}"


def _covers(location: tuple[str | int, ...], place: Place) -> bool:
    shorter = min(len(location), len(place))
    return location[:shorter] == place[:shorter] and len(location) <= len(place)


def _holds(data: Any, place: Place) -> bool:
    for key in place:
        if not isinstance(data, dict) or key not in data:
            return False
        data = data[key]
    return True


def _at(data: Any, place: Place) -> Any:
    for key in place:
        data = data.get(key) if isinstance(data, dict) else None
    return data


def _leaves(data: Any, place: Place = ()) -> Iterator[Place]:
    if not isinstance(data, dict) or not data:
        yield place
        return
    for key, value in data.items():
        yield from _leaves(value, (*place, key))
