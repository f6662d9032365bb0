"""A first spec from a template: `boomspec/templates/*.yaml`, each a valid spec by itself."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from boomspec.compile.check import check_spec
from boomspec.core.errors import BoomspecError, did_you_mean
from boomspec.core.files import write_atomically
from boomspec.spec.document import parse_document
from boomspec.spec.json_schema import json_schema
from boomspec.spec.spec_file import Spec, SpecFile
from boomspec.spec.validate import validate
from boomspec.spec.yaml_writer import scalar

SCHEMA_FILE = "boomspec.schema.json"
_TEMPLATES = Path(__file__).parent.parent / "templates"
_OWN = {"quickstart": ("name",), "hub": ("name", "teacher"), "student": ("name", "teacher", "student")}


@dataclass(frozen=True)
class FirstSpec:
    """A spec that is not written yet: it is valid."""

    path: Path
    template: str
    text: str


def first_spec(
    place: Path,
    *,
    template: str | None = None,
    name: str | None = None,
    teacher: str | None = None,
    student: str | None = None,
    schema: bool = False,
) -> FirstSpec:
    """The spec that `boomspec init` writes. Raises BoomspecError or SpecError where it would not be valid.

    Without a template, the one that knows a student or a teacher where these are given, else the quickstart.
    """
    chosen = template or ("student" if student else "hub" if teacher else "quickstart")
    if chosen not in _OWN:
        hint = did_you_mean(chosen, list(_OWN)) or f"there are {', '.join(_OWN)}"
        raise BoomspecError(f"there is no template '{chosen}'", hint=hint)
    given = {"teacher": teacher, "student": student}
    for option, value in given.items():
        if value is not None and option not in _OWN[chosen]:
            fitting = next(known for known, options in _OWN.items() if option in options)
            raise BoomspecError(f"the template {chosen} has no {option} to be named", hint=f"take --template {fitting}")
    file = place.suffix in (".yaml", ".yml")
    if name is None:
        found = (student or teacher or "").rstrip("/").rpartition("/")[2].lower()
        name = place.stem if file else found or chosen
    path = place if file else place / f"{name}.yaml"
    text = _replaced((_TEMPLATES / f"{chosen}.yaml").read_text(encoding="utf-8"), "name: ", name)
    for section, model in given.items():
        if model is not None:
            text = _replaced(text, "model: ", _from(path.parent, model), behind=f"{section}:")
    document = parse_document(text, path)
    check_spec(SpecFile(validate(Spec, document), document))
    head = f"# yaml-language-server: $schema={SCHEMA_FILE}\n" if schema else ""
    return FirstSpec(path, chosen, head + text)


def write_spec(spec: FirstSpec, *, schema: bool, force: bool) -> None:
    """Write it, with `schema` the JSON Schema beside it. Raises BoomspecError where that would replace something."""
    content = json.dumps(json_schema(), indent=2) + "\n" if schema else ""
    beside = spec.path.with_name(SCHEMA_FILE)
    if not force and os.path.lexists(spec.path):
        raise BoomspecError(f"{spec.path} is there already", hint="give another name, or replace it: --force")
    if schema and not force and beside.exists() and beside.read_text(encoding="utf-8") != content:
        raise BoomspecError(f"{beside} is there already, and another one", hint="replace it: --force")
    spec.path.parent.mkdir(parents=True, exist_ok=True)
    if schema:
        write_atomically(beside, content)
    write_atomically(spec.path, spec.text)


def _from(folder: Path, model: str) -> str:
    """A model as a spec in `folder` names it: a path on the command line starts here, one in a spec at the spec."""
    here = Path(model).expanduser()
    if not here.is_dir() or here.is_absolute():
        return model
    way = os.path.relpath(here.resolve(), folder.resolve())
    return way if way.startswith(".") else f"./{way}"


def _replaced(text: str, start: str, value: str, *, behind: str = "") -> str:
    """The text with another value in the first line that starts so; its comment stays in its column."""
    lines = text.splitlines()
    first = lines.index(behind) if behind else 0
    i = next(i for i in range(first, len(lines)) if lines[i].lstrip().startswith(start))
    said, hash_sign, comment = lines[i].partition("  #")
    new = said[: len(said) - len(said.lstrip())] + start + scalar(value)
    lines[i] = f"{new:{len(said)}}{hash_sign}{comment}" if hash_sign else new
    return "\n".join(lines) + "\n"
