"""Resolve the models a spec names: folder or hub revision, config, tokenizer, custom code.

A model in a folder is identified by the content of its files, one on the hub by its commit. Where it lies is only its
location. With `trust_remote_code: true` the digests of its code are part of its identity, so that a spec that trusts
the code and one that does not never share an artifact. Both are errors where transformers or the code has no classes.
"""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from boomspec.compile import places
from boomspec.compile.places import errors_at, path_text, resolve_path
from boomspec.compile.transfer_sources import PLACES, transfer_models
from boomspec.core.errors import BoomspecError, Problem
from boomspec.core.graph import CODE, Source
from boomspec.core.tasks import Architecture, Dequantize
from boomspec.models import code
from boomspec.models import folder as contents
from boomspec.models.checkpoint import checkpoint_files
from boomspec.models.facts import ModelFacts, llama_facts, read_config
from boomspec.models.hub import UnreachableError, cached_model, hub_code, hub_folder, hub_templates, pinned_model
from boomspec.models.quantized import check_quantization, quantization_of, target_dtype, whole_facts
from boomspec.models.tokenizer import needed_rows
from boomspec.spec.sections.models import OtherTeacherSpec, TransferModelSpec
from boomspec.spec.sections.student import StudentSpec
from boomspec.spec.sections.teacher import PretrainSpec, TeacherSpec
from boomspec.spec.spec_file import SpecFile, memoized_for, request
from boomspec.spec.yaml_reader import Location

# "teacher", "student", of the teachers beside the own one "teacher 2", "teacher 3", ..., and of a transfer's models
# `boomspec.compile.transfer_sources`.
Role = str
BELIEVED = "tied"  # of the location of a model whose head was taken for its embedding without being read whole
T = TypeVar("T")
_CAUSAL = "AutoModelForCausalLM"


def other_role(number: int) -> Role:
    """Of the number-th teacher beside the own one, from 0."""
    return f"teacher {number + 2}"


def roles(file: SpecFile) -> list[Role]:
    """Of all models that a spec may name."""
    teachers = file.spec.distill.teachers if file.spec.distill is not None else None
    others = map(other_role, range(len(teachers.others) if teachers else 0))
    return ["teacher", *others, *transfer_models(file), "student"]


def place_of(role: Role) -> Location:
    """Where a spec names a model."""
    if role in PLACES:
        return PLACES[role]
    name, _, number = role.partition(" ")
    return ("distill", "teachers", "others", int(number) - 2) if number else (name,)


def section_of(file: SpecFile, role: Role) -> TeacherSpec | StudentSpec | OtherTeacherSpec | TransferModelSpec:
    if role in PLACES:
        return transfer_models(file)[role]
    if role in ("teacher", "student"):
        return file.spec.teacher if role == "teacher" else file.spec.student
    assert file.spec.distill is not None
    assert file.spec.distill.teachers is not None
    return file.spec.distill.teachers.others[int(role.partition(" ")[2]) - 2]


def _known(file: SpecFile, what: str, role: Role, make: Callable[[], T]) -> T:
    """What `make` returns, computed once for all experiments that name the same models."""
    others = () if role in ("teacher", "student", *PLACES) else ("distill",)
    return file.known((what, role), ("teacher", "student", "data", *others), make)


def model_folder(file: SpecFile, role: Role) -> Path | None:
    """The folder of a model that exists; None where it is on the hub, or trained by the spec."""
    return _known(file, "folder of a model", role, lambda: _model_folder(file, role))


def _model_folder(file: SpecFile, role: Role) -> Path | None:
    section, place = section_of(file, role), (*place_of(role), "model")
    if section.model is None:
        return None
    folder = resolve_path(file, place, section.model)
    if places.is_folder(folder):
        return folder
    if os.path.isfile(folder):  # noqa: PTH113 - Path.is_file raises for a name that is too long
        message = f"'{folder}' is a file, not the folder of a model"
        raise file.error_at(place, message, f"give the folder that it is in: {folder.parent}")
    if path_text(file, place, section.model).startswith((".", "/", "~")):
        raise file.error_at(place, f"folder '{folder}' does not exist", places.similar_folder(folder))
    return None


def folder_problems(file: SpecFile, role: Role, folder: Path) -> list[Problem]:
    """What keeps a folder from being read as a model. Looks at names, its config, and beginnings of its files."""

    def check() -> BoomspecError | None:
        try:
            contents.check_folder(folder)
            config = read_config(folder)
            contents.check_config(config, str(folder))
            check_quantization(config, str(folder))
        except BoomspecError as error:
            return error
        return None

    error = file.once(("contents", folder), check)
    return [] if error is None else [file.problem((*place_of(role), "model"), error.message, error.hint)]


@memoized_for("teacher", "data")
def local_facts(file: SpecFile) -> ModelFacts | None:
    """The teacher's facts where no network is needed to know them, else None."""
    teacher = file.spec.teacher
    if teacher.pretrain is not None:
        return llama_facts(architecture(teacher.pretrain))
    folder = model_folder(file, "teacher")
    if folder is None and teacher.model is not None:
        cached = cached_model(*_named_model(file, "teacher"))
        folder = cached if cached and any(cached.glob("*.safetensors")) else None
    if folder is None:
        return None
    with errors_at(file, ("teacher", "model")):
        return file.once(("facts", folder), partial(whole_facts, folder, str(folder)))


def dequantization(file: SpecFile, role: Role) -> Dequantize | None:
    """The task that a quantised model has to go through before it is read; None for any other."""
    with errors_at(file, (*place_of(role), "model")):
        config = _known(file, "config", role, lambda: read_config(_config_folder(file, role)))
    return None if quantization_of(config) is None else Dequantize(dtype=target_dtype(config))


def architecture(pretrain: PretrainSpec) -> Architecture:
    settings = pretrain.model_dump(include=set(Architecture.model_fields))
    others = {"vocabulary": pretrain.tokenizer.vocabulary, "context": pretrain.positions}
    return Architecture.model_validate({**settings, **others, "tied": pretrain.tied_embeddings})


def model_sources(file: SpecFile, role: Role) -> tuple[ModelFacts, Source, Source]:
    """Facts, model and tokenizer of a model that exists. Reads a local model's bytes once, for their digests."""
    with errors_at(file, (*place_of(role), "model")):
        return _known(file, "model", role, lambda: _model_sources(file, role))


def _model_sources(file: SpecFile, role: Role) -> tuple[ModelFacts, Source, Source]:
    section, folder = section_of(file, role), model_folder(file, role)
    if folder is None:
        name, _ = _named_model(file, role)
        commit, facts = _of_hub(file, role, pinned_model)
        location = {"hub": name, "asked": section.revision}
        model, tokenizer = ({"hub": name, "revision": commit, **trusted} for trusted in _code(file, role))
        of_model = {**location, BELIEVED: True} if facts.believed else location
        return facts, Source("model", model, of_model), Source("tokenizer", tokenizer, location)
    if problems := folder_problems(file, role, folder):
        raise file.error(*problems)
    facts = file.once(("facts", folder), partial(whole_facts, folder, str(folder)))
    files = [folder / contents.CONFIG, *checkpoint_files(folder), *contents.travelling_files(folder)]
    of_tokenizer = contents.model_files(folder, contents.is_tokenizer_file)
    if role == "teacher":
        if not of_tokenizer and file.spec.data is not None:
            hint = "save one there: tokenizer.save_pretrained(folder)"
            raise BoomspecError(f"{folder} holds no tokenizer", hint=hint)
        needed, rows = needed_rows(folder), facts.token_embedding.shape[0]
        if needed is not None and needed > rows:
            message = f"{folder}: its tokenizer has ids up to {needed - 1}, its embedding {rows} rows"
            hint = "give the tokenizer of the model, or resize the model: resize_token_embeddings(len(tokenizer))"
            raise BoomspecError(message, hint=hint)
    location = {"folder": str(folder), "name": places.shown_path(str(section.model))}

    def source(kind: str, paths: list[Path], code_of: dict[str, Any], **more: Any) -> Source:
        if code_of:  # code reads any file that it names
            paths = list(dict.fromkeys([*paths, *code.files_of_code(folder)]))
        digests = {path.relative_to(folder).as_posix(): places.digest_of(file, path) for path in paths}
        return Source(kind, {"sha256": digests, **more, **code_of}, location)

    model, tokenizer = _code(file, role)
    # A tokenizer also reads the model's config; on the hub the commit covers both.
    context = contents.tokenizer_context(read_config(folder), contents.read_object(folder / code.CONFIGS["tokenizer"]))
    made = source("model", files, model)
    return facts, made, source("tokenizer", of_tokenizer, tokenizer, **{contents.CONTEXT: context})


def _config_folder(file: SpecFile, role: Role) -> Path:
    """Where a model's config.json is; of a model on the hub, in its pinned commit, with its code if that is trusted."""
    if (folder := model_folder(file, role)) is not None:
        return folder
    commit, _ = _of_hub(file, role, pinned_model)
    name, trusts = str(section_of(file, role).model), section_of(file, role).trust_remote_code
    fetch = hub_code if trusts else partial(hub_folder, file="config.json")
    return file.once(("configs", name, commit, trusts), lambda: fetch(name, commit))


def tokenizer_folder(file: SpecFile, role: Role) -> Path:
    """Where a model's tokenizer.json is; of a model on the hub, in its pinned commit."""
    if (folder := model_folder(file, role)) is not None:
        return folder
    commit, _ = _of_hub(file, role, pinned_model)
    name, file_name = str(section_of(file, role).model), contents.TOKENIZER
    return file.once(("tokenizer", name, commit), lambda: hub_folder(name, commit, file=file_name))


def hub_tokenizer_folder(file: SpecFile, role: Role) -> Path:
    """Where the configs and chat templates of a hub model's tokenizer are, in its pinned commit."""
    commit, _ = _of_hub(file, role, pinned_model)
    name = _named_model(file, role)[0]
    return file.once(("chat templates", name, commit), lambda: hub_templates(name, commit))


def student_mapping(file: SpecFile, layers: int) -> tuple[int, ...]:
    """The kept layers, of a teacher of `layers`, in the student_config.json of a student that exists."""
    return read_mapping(file, "student", layers)


def read_mapping(file: SpecFile, role: Role, layers: int) -> tuple[int, ...]:
    """The same of a student that has this role."""
    with errors_at(file, (*place_of(role), "model")):
        ask = partial(hub_folder, file=contents.STUDENT_CONFIG)
        folder = model_folder(file, role) or _of_hub(file, role, ask)
        return contents.read_student_mapping(folder, layers=layers)


def _named_model(file: SpecFile, role: Role) -> tuple[str, str | None]:
    """The name of a model that exists, and its revision: the lock's, else the spec's."""
    section = section_of(file, role)
    assert section.model is not None
    name = path_text(file, (*place_of(role), "model"), section.model)
    locked = None if file.pins.only_offline else file.pins.models.get(request(name, section.revision))
    return name, locked or section.revision


def _of_hub(file: SpecFile, role: Role, ask: Callable[[str, str | None], T]) -> T:
    """`ask` of a hub model's name and revision; where the hub gives no answer, of the commit in the lock."""
    name, revision = _named_model(file, role)
    written = section_of(file, role)
    try:
        try:
            return file.once(("hub", ask, name, revision), lambda: ask(name, revision))
        except UnreachableError:
            locked = file.pins.models.get(request(name, written.revision))
            if locked is None or locked == revision:
                raise
            return file.once(("hub", ask, name, locked), lambda: ask(name, locked))
    except BoomspecError as error:
        # A folder that does not exist looks like a name of the hub.
        place = (*place_of(role), "model")
        folder, hint = resolve_path(file, place, str(written.model)), error.hint
        meant = places.similar_folder(folder)
        if meant is not None and meant not in (hint or ""):
            hint = f"{meant} Else {hint}" if hint else meant
        message = f"there is no folder '{folder}'; {error.message}"
        raise file.error_at(place, message, hint) from error


def code_problems(file: SpecFile, role: Role, folder: Path) -> list[Problem]:
    """What is wrong with trusting, or not trusting, the code in a model's folder. Reads its configs only."""
    section = section_of(file, role)
    try:
        if section.trust_remote_code:
            _check_trusted(folder, str(section.model))
        else:
            for part in code.CONFIGS:
                code.check_native(folder, part, str(section.model))
    except BoomspecError as error:
        return [file.problem(_trust_place(file, role), error.message, error.hint)]
    return []


def _trust_place(file: SpecFile, role: Role) -> Location:
    return (*place_of(role), "trust_remote_code" if section_of(file, role).trust_remote_code else "model")


def _check_trusted(folder: Path, name: str) -> None:
    named = {part: code.named_classes(folder, part) for part in code.CONFIGS}
    if not any(named.values()):
        configs = " and ".join(code.CONFIGS.values())
        message = f"'{name}' brings no code along: there is no '{code.AUTO_MAP}' in its {configs}"
        raise BoomspecError(message, hint="remove it: transformers' own classes are used")
    files = code.code_files(folder)
    for part, classes in named.items():
        config = code.CONFIGS[part]
        where = f"{config} of '{name}'"
        code.check_named([cls for auto in code.USED for cls in classes.get(auto, ())], files, where)
        lacks = part == "model" and classes and _CAUSAL not in classes
        if lacks and ("AutoConfig" in classes or code.is_native(contents.read_object(folder / config), part) is False):
            hint = "it is the class that boomspec loads; others, such as AutoModel, have no head"
            raise BoomspecError(f"{where}: '{code.AUTO_MAP}' names no {_CAUSAL}", hint=hint)


def _code(file: SpecFile, role: Role) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the code that a model brings along adds to the identities of model and tokenizer; mostly nothing."""
    folder = _config_folder(file, role)
    digests = _trusted_code(file, role, folder)
    if role == "student" and file.spec.teacher.model is not None:
        teacher = _config_folder(file, "teacher")
        _check_same(file, (teacher, folder), (_trusted_code(file, "teacher", teacher), digests))
    model = {CODE: digests} if digests else {}
    return model, model if model and code.named_classes(folder, "tokenizer") else {}


def _trusted_code(file: SpecFile, role: Role, folder: Path) -> dict[str, str]:
    """sha256 by file name of the code of a model that may run. Raises SpecError."""
    if problems := code_problems(file, role, folder):
        raise file.error(*problems)
    trusts = section_of(file, role).trust_remote_code
    return file.once(("code", folder), lambda: code.code_digests(folder)) if trusts else {}


def _check_same(file: SpecFile, folders: tuple[Path, Path], digests: tuple[dict[str, str], dict[str, str]]) -> None:
    """Raise SpecError unless teacher and student run the same code: every size has layers of both."""
    classes = [code.named_classes(folder, "model") for folder in folders]
    named = [found.get(_CAUSAL) for found in classes]
    if named == [None, None]:
        return
    place, hint = _trust_place(file, "student"), "every size is made of layers of both"
    # Of a model that names none only the tokenizer's code is trusted.
    runs = [bool(trusted and found) for trusted, found in zip(digests, classes, strict=True)]
    if runs[0] != runs[1]:
        message = "the code of one of teacher and student is trusted, and not that of the other"
        raise file.error_at(place, message, f"trust both or neither: {hint}")
    other = [name for name in digests[0].keys() & digests[1].keys() if digests[0][name] != digests[1][name]]
    if runs[0] and (named[0] != named[1] or other):
        what = f"{min(other)} is not the same" if other else f"{named[0]} and {named[1]}"
        message = f"teacher and student bring different code: {what}"
        raise file.error_at(place, message, f"it must be the same: {hint}")
