"""What `student.transfer` names: a spec, a run or a model; of a run the two models that it leads to.

from: spec.yaml#label     another spec: its tasks become part of this graph (`boomspec.compile.transfers`)
from: store/runs/name     a run: the student that is in its store, and the teacher that its graph names
from: folder or hub id    a distilled student; `base` says from which model
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from boomspec.compile.places import is_folder, path_text, resolve_path
from boomspec.core.errors import BoomspecError, SpecError
from boomspec.core.graph import TaskGraph
from boomspec.core.graph_file import read_graph
from boomspec.models.hub import UnreachableError
from boomspec.spec.experiments import load_experiments
from boomspec.spec.sections.models import TransferModelSpec
from boomspec.spec.spec_file import SpecFile, memoized_for
from boomspec.spec.yaml_reader import Location
from boomspec.store import FolderStore, store_of_run

DISTILLED, BASE = "transfer from", "transfer base"  # roles of models
PLACES: dict[str, Location] = {DISTILLED: ("student", "transfer", "from"), BASE: ("student", "transfer", "base")}
_GRAPH = "graph.json"  # of a run's folder
_SPECS = (".yaml", ".yml")


def other_spec(file: SpecFile) -> SpecFile | None:
    """The experiment whose student is transferred, where `from` is a spec. Raises SpecError where it is not one."""
    return None if (address := _spec_address(file)) is None else _loaded(file, address)


def _spec_address(file: SpecFile) -> str | None:
    """The path and label of a spec, as one text."""
    section = file.spec.student.transfer
    if section is None:
        return None
    path, _, label = path_text(file, PLACES[DISTILLED], section.from_.model).partition("#")
    if not path.endswith(_SPECS):
        return None
    return f"{resolve_path(file, PLACES[DISTILLED], path)}{'#' * bool(label)}{label}"


@memoized_for("student")
def _loaded(file: SpecFile, address: str) -> SpecFile:
    place, section = PLACES[DISTILLED], file.spec.student.transfer
    assert section is not None
    for name, given in (("base", section.base), ("from", section.from_.revision)):
        if given is not None:
            hint = "remove it: a spec says itself which teacher its student has"
            raise file.error_at(("student", "transfer", name), "goes with a model, not with a spec", hint)
    seen, one = {_address_of(file)}, file
    next_address: str | None = address
    first: SpecFile | None = None
    while next_address is not None:
        if next_address in seen:
            raise file.error_at(place, "the specs transfer from each other in a circle")
        seen.add(next_address)
        if not Path(next_address.partition("#")[0]).is_file():
            raise one.error_at(place, f"there is no spec '{next_address.partition('#')[0]}'")
        with problems_of_another(file):
            found = load_experiments(next_address)
        if len(found) > 1:
            labels = ", ".join(other.label for other in found)
            raise one.error_at(place, f"which of its experiments? name one: #{found[0].label}", f"it has {labels}")
        one = found[0]
        first = first or one
        next_address = _spec_address(one)
    assert first is not None
    if first.spec.student.model is not None:
        hint = "name that model and its base: {from: MODEL, base: MODEL}"
        raise file.error_at(place, "the student of that spec exists, and is not distilled by it", hint)
    return first


@contextmanager
def problems_of_another(file: SpecFile) -> Iterator[None]:
    """Turn what is wrong with the other spec into one problem of this one, at the place that names it."""
    try:
        yield
    except SpecError as error:
        first = error.problems[0]
        message = f"that spec is not right: {first.file or error.file}:{first.line}: {first.where}: {first.message}"
        raise file.error_at(PLACES[DISTILLED], message, first.hint) from error
    except UnreachableError:
        raise
    except BoomspecError as error:
        raise file.error_at(PLACES[DISTILLED], error.message, error.hint) from error


def _address_of(file: SpecFile) -> str:
    return f"{file.document.file.resolve()}{'#' * bool(file.label)}{file.label}"


@memoized_for("student")
def transfer_models(file: SpecFile) -> dict[str, TransferModelSpec]:
    """The models that a transfer reads, by role; none where they are tasks of another spec. Raises SpecError."""
    section = file.spec.student.transfer
    if section is None or _spec_address(file) is not None:
        return {}
    folder = resolve_path(file, PLACES[DISTILLED], section.from_.model)
    models = {DISTILLED: section.from_}
    if is_folder(folder) and (folder / _GRAPH).is_file():
        try:
            models = _of_run(folder)
        except BoomspecError as error:
            raise file.error_at(PLACES[DISTILLED], error.message, error.hint) from error
    if section.base is not None:
        models[BASE] = section.base
    if BASE not in models:
        hint = "name the model that it was distilled from: base: MODEL"
        raise file.error_at(("student", "transfer"), "missing 'base': nothing says whose student this is", hint)
    return models


def _of_run(folder: Path) -> dict[str, TransferModelSpec]:
    """Student and teacher of a run. Raises BoomspecError where its student is not at hand."""
    graph = read_graph(folder / _GRAPH)
    if graph.family is None:
        several = len(graph.experiments) > 1
        message = f"{folder}: " + ("has several experiments" if several else "its family is not known yet")
        raise BoomspecError(message, hint="name its spec, with the experiment's label: spec.yaml#label")
    return {
        DISTILLED: _model_of(graph, folder, graph.family.student),
        BASE: _model_of(graph, folder, graph.family.teacher),
    }


def _model_of(graph: TaskGraph, folder: Path, model: str) -> TransferModelSpec:
    if (source := graph.sources.get(model)) is not None:
        if "hub" in source.location:
            return TransferModelSpec(model=source.location["hub"], revision=source.identity["revision"])
        return TransferModelSpec(model=source.location["folder"])
    node, store = graph.nodes[model], store_of_run(folder)
    if not isinstance(store, FolderStore) or not store.is_whole(node.task.kind, model):
        message = f"{folder}: '{node.name}' is not in a store on this machine"
        raise BoomspecError(message, hint="name its spec: what is missing is then made")
    return TransferModelSpec(model=str(store.path(node.task.kind, model) / "model"))
