"""The folder of a whole family, whose sizes share the files of their weights: what it holds, and its `family.json`.

    family.json             the sizes (layer plans, parameters, bytes), results, where the family is from
    shards/                 the weights of teacher and student, each tensor once: "teacher.model.layers.4..."
    24-layers/              one for each size: config.json, an index that names the shards of its tensors, and
                            key_mapping.json
    tokenizer.json, ...     what travels with every size
    README.md

A tensor of a size is called otherwise than where it is stored: layer 4 of the teacher may be its layer 2. The rules
for that are in `key_mapping.json`: what the argument `key_mapping` of transformers' `from_pretrained` takes, so that a
size loads without boomspec, too.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import TypeAdapter, ValidationError

from boomspec.core.errors import BoomspecError
from boomspec.core.files import read_json
from boomspec.core.layers import STUDENT, TEACHER, LayerPlan, Owner, layers_text
from boomspec.core.sizes import Lineage, Member, folder_name
from boomspec.core.types import Strict
from boomspec.models.checkpoint import TensorEntry, read_header
from boomspec.models.facts import ModelFacts, model_facts, read_config
from boomspec.models.folder import INDEX, read_object
from boomspec.models.hub import hub_header

FAMILY_FILE: Final = "family.json"
INDEX_FILE: Final = "index.json"  # beside sizes that are each in a folder of their own
CARD: Final = "README.md"
KEY_MAPPING: Final = "key_mapping.json"
SHARDS: Final = "shards"
OWNERS: Final[Mapping[Owner, str]] = {TEACHER: "teacher", STUDENT: "student"}  # how names of their tensors begin
_VERSION: Final = 1
_HUB_NAME = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"
_FILES = (".yaml", ".yml", ".json")  # of specs and graphs
_WRITE = "boomspec export RUN FOLDER --family"


class SizeFiles(Strict):
    """Where one size lies in the folder."""

    folder: str
    plan: str
    shards: tuple[str, ...]  # relative to the family's folder


class FamilyFile(Strict):
    """What `family.json` holds."""

    boomspec_family: Literal[1] = _VERSION
    name: str
    model_type: str
    family: dict[str, Any]  # `Lineage.to_json`
    counts: dict[Owner, int]  # layers of teacher and student
    sizes: tuple[SizeFiles, ...]
    results: tuple[dict[str, Any], ...] = ()  # one for each number: size, layers, plan, measure, metric, value, ...
    base_model: str | None = None
    license: str | None = None
    graph: str | None = None

    @cached_property
    def lineage(self) -> Lineage:
        return TypeAdapter(Lineage).validate_python(self.family)

    def files_of(self, plan: LayerPlan) -> SizeFiles | None:
        return next((size for size in self.sizes if size.plan == layers_text(plan)), None)


def is_family(place: str | os.PathLike[str]) -> bool:
    """Whether a family's folder is meant: one that is here, or where nothing is called so, one on the hub."""
    path = Path(place)
    if path.is_dir():
        return (path / FAMILY_FILE).is_file()
    return not path.exists() and path.suffix not in _FILES and re.fullmatch(_HUB_NAME, os.fspath(place)) is not None


def read_family_file(folder: Path) -> FamilyFile:
    """Raises BoomspecError where the folder holds no family, or one of another version."""
    path = folder / FAMILY_FILE
    try:
        data = read_json(path)
        version = data.get("boomspec_family") if isinstance(data, dict) else None
        if version != _VERSION:
            message = f"{path}: version {version!r} of a family's folder, but this boomspec reads version {_VERSION}"
            raise BoomspecError(message, hint=f"write it again: {_WRITE}")
        found = FamilyFile.model_validate(data)
        _ = found.lineage
    except OSError as error:
        message = f"{folder}: holds no readable {FAMILY_FILE}: {error.strerror or error}"
        raise BoomspecError(message, hint=f"{_WRITE} writes one") from error
    except (ValidationError, ValueError) as error:
        raise BoomspecError(f"{path}: cannot be read as a family: {error}", hint=f"write it again: {_WRITE}") from error
    return found


def teacher_facts(folder: Path, file: FamilyFile, *, hub: str | None = None) -> ModelFacts:
    """What the headers say of the teacher. `hub`: the repository that has the files that are not in the folder."""
    teacher = file.files_of(file.lineage.members[-1].plan)
    assert teacher is not None
    own, entries = folder / teacher.folder, dict[str, TensorEntry]()
    for shard in teacher.shards:
        here = hub is None or (folder / shard).is_file()
        found = read_header(folder / shard) if here else hub_header(str(hub), folder.name, shard)
        entries |= {entry.name: entry for entry in found}
    rules, stored = read_object(own / KEY_MAPPING), read_object(own / INDEX)["weight_map"]
    names = {name: named_by(rules, name) for name in stored}
    tensors = {names[name]: replace(entries[name], name=names[name]) for name in stored}
    return model_facts(read_config(own), tensors, str(own))


def size_folders(lineage: Lineage) -> dict[str, Member]:
    """Every size by the name of its folder; the student, too, where it is none of the members."""
    found = {folder_name(lineage, member): member for member in lineage.members}
    if all(member.plan != lineage.trained.plan for member in lineage.members):
        found["student"] = lineage.trained
    return found


def rule(stored: str, name: str, rest: str) -> tuple[str, str]:
    """The pattern and what takes its place, by which a stored tensor gets its name; `rest` is the end of both."""
    if not rest:
        return f"^{re.escape(stored)}$", name
    return f"^{re.escape(stored.removesuffix(rest))}", name.removesuffix(rest)


def named_by(rules: Mapping[str, str], stored: str) -> str:
    """What a stored tensor is called in the size whose rules these are."""
    for pattern, name in rules.items():
        if (found := re.match(pattern, stored)) is not None:
            return name + stored[found.end() :]
    return stored
