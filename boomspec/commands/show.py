"""`boomspec show`: every value of a spec, a graph or a run, written out.

A comment marks a value that was not written as a default, names the base file or the variant that sets it, or gives the
rule that it follows from. What is not known (no network, a search that has not run) is named at the end.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import click

from boomspec.commands.options import json_option, spec_argument, store_option, warn
from boomspec.compile.check import check_experiments
from boomspec.compile.compiler import compile_experiments, search_results_from
from boomspec.compile.resolved import FOLLOWING, resolve, tasks_by_name
from boomspec.core.errors import BoomspecError, SpecError
from boomspec.core.json_text import json_text
from boomspec.models.hub import UnreachableError
from boomspec.models.trust import asked_for
from boomspec.plan.changes import differences
from boomspec.plan.run import open_run, run_folder, store_of
from boomspec.spec.document import Document
from boomspec.spec.experiments import load_experiments, split_address
from boomspec.spec.spec_file import SpecFile
from boomspec.spec.yaml_writer import Path as Place
from boomspec.spec.yaml_writer import inline, lines
from boomspec.store import Where, open_store

SHOW_SCHEMA_VERSION = 1
_MOST_ROWS = 50  # of experiments
_WORKED_OUT = (*FOLLOWING, ("sources",), ("interpolate", "sizes"))


@click.command("show")
@spec_argument
@store_option
@click.option("--all", "every", is_flag=True, help="Every experiment in full, not only how each differs.")
@json_option
def command(spec: Path, store: Where | None, every: bool, as_json: bool) -> None:
    """Show the resolved SPEC: all defaults, layers and sizes as integers, layer plans, and what is read.

    SPEC: a spec, one of its experiments (SPEC#LABEL), a compiled graph, or the folder of a run. A comment marks what
    was not written ("default"), what a rule has become ("from ..."), and which file or variant sets a value.

    \b
    Examples:
      boomspec show specs/quickstart.yaml
      boomspec show boomspec-store/runs/quickstart-1a2b3c4d --json
    """
    name, experiments, unknown = review(spec, store)
    warn(line for experiment in experiments for line in asked_for(experiment.meaning))
    if as_json:
        rows = [{"label": e.label, "axes": e.axes, "meaning": e.meaning, "defaults": e.defaults()} for e in experiments]
        content = {"schema": SHOW_SCHEMA_VERSION, "name": name, "unknown": unknown or None}
        click.echo(json_text({**content, "experiments": rows}, indent=2))
        return
    several = len(experiments) > 1
    for i, experiment in enumerate(experiments if every else experiments[:1]):
        if several:
            click.echo(("---\n" if i else "") + f"# {experiment.label}")
        click.echo(experiment.text(), nl=False)
    if several and not every:
        first, *others = experiments
        click.echo(f"\n# {len(experiments)} experiments; how the others differ from {first.label}:")
        width = max(len(experiment.label) for experiment in experiments)
        for experiment in others[:_MOST_ROWS]:
            differing = (d for d in differences(first.meaning, experiment.meaning) if d.name != "name")
            changes = ", ".join(f"{d.name}: {'(none)' if d.new is None else inline(d.new)}" for d in differing)
            click.echo(f"#   {experiment.label:{width}}  {changes or 'nothing'}")
        if len(others) > _MOST_ROWS:
            click.echo(f"#   and {len(others) - _MOST_ROWS} more (--json has all)")
    if unknown:
        click.echo(f"\n# not known: {unknown}")


@dataclass(frozen=True)
class Shown:
    """One experiment. `file` is None where it was read from a graph, which does not tell what was written."""

    label: str
    axes: dict[str, str]
    meaning: dict[str, Any]
    file: SpecFile | None = None

    def text(self) -> str:
        """The experiment as YAML, with comments."""
        plain = {key: value for key, value in self.meaning.items() if key != "written"}
        return "\n".join(lines(plain, self.comment)).strip() + "\n"

    def comment(self, place: Place) -> str:
        """The comment on one value; "" where it stands in the spec as it is shown."""
        place = place[:2] if place[:2] == ("interpolate", "sizes") else place
        written = self.meaning.get("written", {})
        rules: dict[Place, Any] = {("interpolate", key): value for key, value in written.get("interpolate", {}).items()}
        rules["student", "keep"] = written.get("keep")
        if (rule := rules.get(place)) is not None and rule != _at(self.meaning, place):
            return ", ".join(filter(None, [f"from {inline(rule)}", self._origin(place)]))
        if self.file is None or (any(place[: len(start)] == start for start in _WORKED_OUT) and place not in rules):
            return ""
        return self._origin(place) if _at(self._said, place, missing=...) is not ... else "default"

    def defaults(self) -> list[str] | None:
        """The fields that were not written; None where that is not known."""
        if self.file is None:
            return None
        return [".".join(place) for place in _leaves(self.meaning) if "default" in self.comment(place)]

    @cached_property
    def _said(self) -> dict[str, Any]:
        """What the spec says itself, without defaults, in the shape of its meaning."""
        if self.file is None:
            return {}
        plain = self.file.spec.model_dump(mode="json", exclude_unset=True)
        plain["baselines"] = {kind: settings for item in plain.get("baselines", ()) for kind, settings in item.items()}
        if "tasks" in (plain.get("evaluate") or {}):
            plain["evaluate"]["tasks"] = tasks_by_name(plain["evaluate"]["tasks"], self.file.spec)
        return plain

    def _origin(self, place: Place) -> str:
        if self.file is None:
            return ""
        layer: Document | None = self.file.document
        while layer is not None:
            if layer.title and any(edit.is_leaf and edit.covers(place) for edit in layer.edits):
                return layer.title
            layer = layer.below
        found = self.file.document.nearest(place)
        return "" if found.file == self.file.document.file else f"{found.file.name}:{found.line}"


def review(address: Path, store: Where | None) -> tuple[str, list[Shown], str]:
    """The name and experiments of a spec, graph file or run, and what is unknown. Raises SpecError or BoomspecError."""
    path, _ = split_address(address)
    files: dict[str, SpecFile] = {}
    if run_folder(path, None if store is None else open_store(store)) is not None or path.suffix == ".json":
        graph = open_run(address, store).graph
    else:
        files = {file.label: file for file in load_experiments(address)}
        first, *_ = files.values()
        try:
            graph = compile_experiments([*files.values()], search_results_from(store_of(first, store))).graph
        except BoomspecError as error:
            if isinstance(error, SpecError) and not _is_unreachable(error):
                raise
            return _without_reading(files, error)
    shown = [Shown(e.label, e.axes, e.meaning, files.get(e.label)) for e in graph.experiments]
    waiting = [experiment.label for experiment in graph.experiments if experiment.family is None]
    named = f": {', '.join(waiting)}" if any(waiting) else ""
    unknown = f"layers or their order, before a search has run{named}" if waiting else ""
    if graph.unknown:
        unknown = "; ".join(filter(None, (unknown, "the tasks of lm-eval, which is not installed here")))
    return graph.name, shown, unknown


def _without_reading(files: dict[str, SpecFile], error: BoomspecError) -> tuple[str, list[Shown], str]:
    """Without a network: all but what is read, and layers where they depend on that."""
    families = {label: check_experiments([file])[0] for label, file in files.items()}
    shown = []
    for label, file in files.items():
        meaning = resolve(file.spec, families[label]).to_json()
        shown.append(Shown(label, file.axes, {key: value for key, value in meaning.items() if key != "sources"}, file))
    what = "what is read" if all(families.values()) else "layers, sizes and what is read"
    why = error.problems[0].message if isinstance(error, SpecError) else error.message
    return next(iter(files.values())).spec.name, shown, f"{what}: {why}"


def _is_unreachable(error: BaseException | None) -> bool:
    return error is not None and (isinstance(error, UnreachableError) or _is_unreachable(error.__cause__))


def _at(data: Any, place: Place, *, missing: Any = None) -> Any:
    for key in place:
        if not isinstance(data, dict) or key not in data:
            return missing
        data = data[key]
    return data


def _leaves(data: Any, place: Place = ()) -> Iterator[Place]:
    if not isinstance(data, dict) or not data:
        yield place
        return
    for key, value in data.items():
        yield from _leaves(value, (*place, key))
