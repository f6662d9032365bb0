"""Resolve paths in a spec: environment variables, base folder, machine-independent names."""

import difflib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from boomspec.compile.text_files import home_path
from boomspec.core.errors import BoomspecError, Problem, SpecError
from boomspec.core.identity import file_digest
from boomspec.models.hub import UnreachableError
from boomspec.spec.sections.execution import TrackingSpec
from boomspec.spec.spec_file import SpecFile
from boomspec.spec.variables import VariableError, bare_variable, expanded
from boomspec.spec.yaml_reader import Location


@contextmanager
def errors_at(file: SpecFile, place: Location, prefix: str = "") -> Iterator[None]:
    """Turn a BoomspecError into a SpecError at a place of the spec, unless the hub gave no answer."""
    try:
        yield
    except (SpecError, UnreachableError):
        raise
    except BoomspecError as error:
        raise file.error_at(place, prefix + error.message, error.hint) from error


def path_text(file: SpecFile, place: Location, text: str) -> str:
    """The text of a path at `place` with its environment variables expanded. Raises SpecError."""
    with errors_at(file, place):
        return expanded(text)


def variable_problems(file: SpecFile) -> Iterator[Problem]:
    """Problems of the environment variables in a spec's paths."""
    spec, tracking = file.spec, file.spec.execution.tracking.model_dump(exclude_none=True)
    paths: dict[Location, str | None] = {
        ("teacher", "model"): spec.teacher.model,
        ("student", "model"): spec.student.model,
        ("execution", "store"): spec.execution.store,
    }
    if (transfer := spec.student.transfer) is not None:
        paths["student", "transfer", "from"] = transfer.from_.model
        paths["student", "transfer", "base"] = transfer.base.model if transfer.base is not None else None
    if spec.distill is not None and spec.distill.teachers is not None:
        others = enumerate(spec.distill.teachers.others)
        paths |= {("distill", "teachers", "others", i, "model"): other.model for i, other in others}
    if spec.data is not None:
        for source, own in spec.data.texts.items():
            at: Location = ("data", "sources", source) if source else ("data",)
            paths |= {(*at, "files", i): name for i, name in enumerate(own.files or ())}
            paths |= {(*at, "chat_template"): own.chat_template}
            held_out = own.held_out.files if own.held_out is not None else None
            paths |= {(*at, "held_out", "files", i): name for i, name in enumerate(held_out or ())}
    if spec.evaluate is not None:
        paths["evaluate", "tasks_folder"] = spec.evaluate.tasks_folder
        if spec.evaluate.texts is not None:
            paths["evaluate", "texts", "file"] = spec.evaluate.texts.file
    for kind in ("wandb", "mlflow"):
        paths |= {("execution", "tracking", kind, name): str(text) for name, text in tracking.get(kind, {}).items()}
    for place, text in paths.items():
        if text is None:
            continue
        try:
            expanded(text)
        except VariableError as error:
            yield file.problem(place, error.message, error.hint)
            continue
        if (name := bare_variable(text)) is not None and not os.path.lexists(file.folder(place) / text):
            message = f"'${name}' is text as it stands, and not the environment variable of that name"
            yield file.problem(place, message, f"write ${{{name}}}")


def tracking_of(file: SpecFile) -> dict[str, Any]:
    """The trackers of a run, with environment variables expanded. Raises SpecError for values that they refuse."""
    trackers = file.spec.execution.tracking.model_dump(exclude_none=True)
    for tracker in ("wandb", "mlflow"):
        for name, text in trackers.get(tracker, {}).items():
            trackers[tracker][name] = path_text(file, ("execution", "tracking", tracker, name), text)
    try:
        TrackingSpec.model_validate(trackers)  # values of variables are held to the same rules
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        message = str(first.get("ctx", {}).get("error", first["msg"]))
        raise file.error_at(("execution", "tracking", *first["loc"]), message) from error
    return trackers


def resolve_path(file: SpecFile, place: Location, path: str) -> Path:
    folder, path = file.folder(place), path_text(file, place, path)
    try:
        return (folder / home_path(path)).resolve()
    except RuntimeError:  # "~nobody": no such user
        return folder / path


def shown_path(path: str) -> str:
    """A path as it is written; of an absolute one, which is of one machine, its last part."""
    return Path(path).name if Path(path).is_absolute() else path


def is_folder(path: Path) -> bool:
    return os.path.isdir(path)  # noqa: PTH112 - Path.is_dir raises for a name that is too long


def similar_folder(path: Path) -> str | None:
    """A hint for a folder that does not exist: the one beside it whose name is nearly the same."""
    folder = next(parent for parent in path.parents if is_folder(parent))
    missing = path.relative_to(folder).parts
    try:
        names = [entry.name for entry in folder.iterdir() if entry.is_dir()]
    except OSError:
        return None
    close = difflib.get_close_matches(missing[0], names, n=1, cutoff=0.7)
    return f"did you mean {Path(folder, close[0], *missing[1:])}?" if close else None


def digest_of(file: SpecFile, path: Path) -> str:
    """The sha256 of a file, which is read once."""
    return file.once(("digest", path), lambda: file_digest(path))
