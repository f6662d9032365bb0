"""What a spec reads and does not make: its paths checked, its contents digested, its revisions pinned.

The identity of a file is its content, the identity of something on the hub is its commit. Where a thing
lies is only its location.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

from boomspec.compiling.foreign_code import check_alike, code_problems, trusted_code
from boomspec.compiling.place_names import file_names, shown_path, text_name
from boomspec.corpus import python_stdlib
from boomspec.errors import Problem
from boomspec.graph import Source
from boomspec.identity import file_digest
from boomspec.language.data import DataSpec
from boomspec.language.sections import StudentSpec, TeacherSpec
from boomspec.language.spec import SpecFile
from boomspec.language.training import PretrainSpec
from boomspec.models.architecture import llama_facts
from boomspec.models.checkpoint import checkpoint_files
from boomspec.models.code import CODE
from boomspec.models.facts import ModelFacts, read_facts
from boomspec.models.files import tokenizer_files, travelling_files
from boomspec.models.hub import UnreachableError, cached_model, hub_code, hub_folder, pinned_dataset, pinned_model
from boomspec.models.published import STUDENT_CONFIG, read_student_mapping
from boomspec.tasks import Architecture

Role = Literal["teacher", "student"]
T = TypeVar("T")

_FORMATS = {
    **dict.fromkeys((".txt", ".text", ".md", ".rst", ".py", ".c", ".h", ".cpp", ".rs", ".go", ".java", ".tex"), "text"),
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
}
_HUB_ID = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96})?")


def check_paths(file: SpecFile) -> list[Problem]:
    """Problems of what a spec names, without reading what it holds."""
    return file.known("paths", ("teacher", "student", "data", "evaluate"), lambda: _check_paths(file))


def _check_paths(file: SpecFile) -> list[Problem]:
    problems = []
    spec = file.spec
    if spec.evaluate is not None and spec.evaluate.held_out is not None and spec.data and not spec.data.held_out:
        hint = "set documents apart: data: {held_out: {every: 20}}"
        problems.append(file.problem(("evaluate", "held_out"), "there is no held-out text to measure", hint))
    roles: tuple[Role, ...] = ("teacher", "student")
    for role in roles:
        section = spec.teacher if role == "teacher" else spec.student
        name = section.model
        if name is not None and model_folder(file, role) is None and not _HUB_ID.fullmatch(name):
            problems.append(file.problem((role, "model"), f"'{name}' is neither a folder nor a hub id (owner/name)"))
        if name is not None and section.revision is not None and model_folder(file, role) is not None:
            problems.append(file.problem((role, "revision"), "a folder has no revisions", "remove it"))
        if (folder := model_folder(file, role)) is not None:
            problems += code_problems(file, role, folder)
    if spec.data is not None and spec.data.files is not None:
        for i, pattern in enumerate(spec.data.files):
            if not _matches(file, i, pattern):
                place = ("data", "files", i)
                message, hint = f"no file matches '{pattern}'", f"paths are relative to {file.folder(place)}"
                problems.append(file.problem(place, message, hint))
        problems += _data_problems(file, spec.data)
    if spec.evaluate is not None and spec.evaluate.tasks_folder is not None:
        tasks = resolve_path(file, ("evaluate", "tasks_folder"), spec.evaluate.tasks_folder)
        if not _is_folder(tasks):
            problems.append(file.problem(("evaluate", "tasks_folder"), f"'{tasks}' is not a folder"))
    return problems


def _data_problems(file: SpecFile, data: DataSpec) -> list[Problem]:
    files = data_files(file)
    formats = {data.format} if data.format else {_format(path) for path in files}
    if None in formats:
        unknown = next(path for path in files if _format(path) is None)
        hint = "say it: format: text, jsonl or parquet"
        return [file.problem(("data", "files"), f"the format of '{unknown.name}' is not known by its ending", hint)]
    if len(formats) > 1:
        listed = ", ".join(sorted(str(name) for name in formats))
        return [file.problem(("data", "files"), f"files of several formats ({listed})", "give files of one")]
    if formats != {"text"}:
        return []
    if data.text_field is not None:
        return [file.problem(("data", "text_field"), "text files have no fields", "remove it")]
    held_out = len(range(data.held_out.offset, len(files) - data.skip, data.held_out.every)) if data.held_out else 0
    if files and held_out >= len(files) - data.skip:
        hint = "a text file is one document; give more files, or jsonl"
        return [file.problem(("data",), f"no document is left to train on: {len(files)} in all", hint)]
    if data.held_out is not None and held_out == 0:
        message = f"no document would be held out: there are {len(files)}, and a text file is one document"
        return [file.problem(("data", "held_out"), message)]
    return []


def model_folder(file: SpecFile, role: Role) -> Path | None:
    """The folder of a model that exists; None where it is on the hub, or made by the spec."""
    return file.known("folder", (role,), lambda: _model_folder(file, role))


def _model_folder(file: SpecFile, role: Role) -> Path | None:
    section = _section(file, role)
    if section.model is None:
        return None
    folder = resolve_path(file, (role, "model"), section.model)
    local = _is_folder(folder) or section.model.startswith((".", "/", "~"))
    if local and not _is_folder(folder):
        raise file.error(file.problem((role, "model"), f"folder '{folder}' does not exist"))
    return folder if local else None


def local_facts(file: SpecFile) -> ModelFacts | None:
    """The teacher's facts where no network is needed to know them, else None."""
    return file.known("facts", ("teacher", "data"), lambda: _local_facts(file))


def _local_facts(file: SpecFile) -> ModelFacts | None:
    teacher = file.spec.teacher
    if teacher.pretrain is not None and file.spec.data is not None:
        return llama_facts(architecture(teacher.pretrain, file.spec.data.sequence_length))
    folder = model_folder(file, "teacher")
    if folder is None and teacher.model is not None:
        cached = cached_model(*_named_model(file, "teacher"))
        folder = cached if cached and any(cached.glob("*.safetensors")) else None
    return None if folder is None else _facts(file, folder)


def _facts(file: SpecFile, folder: Path) -> ModelFacts:
    return file.once(("facts", folder), lambda: read_facts(folder))


def _digest(file: SpecFile, path: Path) -> str:
    return file.once(("digest", path), lambda: file_digest(path))


def architecture(pretrain: PretrainSpec, context: int) -> Architecture:
    return Architecture(
        layers=pretrain.layers,
        hidden_size=pretrain.hidden_size,
        intermediate_size=pretrain.intermediate_size,
        attention_heads=pretrain.attention_heads,
        key_value_heads=pretrain.key_value_heads or pretrain.attention_heads,
        vocabulary=pretrain.tokenizer.vocabulary,
        context=context,
        tied=pretrain.tied_embeddings,
        initializer_range=pretrain.initializer_range,
    )


def model_sources(file: SpecFile, role: Role) -> tuple[ModelFacts, Source, Source]:
    """Facts, model and tokenizer of a model that exists. Reads a local model's bytes once, for their digests."""
    return file.known("model", (role, "data", "teacher"), lambda: _model_sources(file, role))


def _model_sources(file: SpecFile, role: Role) -> tuple[ModelFacts, Source, Source]:
    name, _ = _named_model(file, role)
    folder = model_folder(file, role)
    if folder is None:
        commit, facts = _of_hub(file, role, pinned_model)
        identity = {"hub": name, "revision": commit}
        location = {"hub": name, "asked": _section(file, role).revision}
        model, words = ({**identity, **code} for code in _code(file, role))
        return facts, Source("model", model, location), Source("tokenizer", words, location)
    facts = _facts(file, folder)
    tokenizer = tokenizer_files(folder)
    if not tokenizer and role == "teacher" and file.spec.data is not None:
        hint = "save one there: tokenizer.save_pretrained(folder)"
        raise file.error(file.problem((role, "model"), f"{folder} holds no tokenizer", hint))
    files = [folder / "config.json", *checkpoint_files(folder), *travelling_files(folder)]
    location = {"folder": str(folder), "name": shown_path(name)}
    of_model, of_tokenizer = _code(file, role)
    return (
        facts,
        Source("model", {"sha256": {p.name: _digest(file, p) for p in files}, **of_model}, location),
        Source("tokenizer", {"sha256": {p.name: _digest(file, p) for p in tokenizer}, **of_tokenizer}, location),
    )


def _code(file: SpecFile, role: Role) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the code that a model brings along adds to the identities of model and tokenizer; mostly nothing."""
    folder = _config_folder(file, role)
    found = trusted_code(file, role, folder)
    if role == "student" and file.spec.teacher.model is not None:
        above = _config_folder(file, "teacher")
        check_alike(file, (above, folder), (trusted_code(file, "teacher", above)[0], found[0]))
    model, tokenizer = ({CODE: digests} if digests else {} for digests in found)
    return model, tokenizer


def _config_folder(file: SpecFile, role: Role) -> Path:
    """Where a model's config.json is; of a model on the hub, in its pinned commit, with its code if that is trusted."""
    if (folder := model_folder(file, role)) is not None:
        return folder
    commit, _ = _of_hub(file, role, pinned_model)
    name, trusts = str(_section(file, role).model), _section(file, role).trust_remote_code
    fetch = hub_code if trusts else partial(hub_folder, file="config.json")
    return file.once(("configs", name, commit, trusts), lambda: fetch(name, commit))


def student_mapping(file: SpecFile, layers: int) -> tuple[int, ...]:
    """The kept layers, of a teacher of `layers`, that a student which exists says it was made from."""
    folder = model_folder(file, "student") or _of_hub(file, "student", partial(hub_folder, file=STUDENT_CONFIG))
    return read_student_mapping(folder, layers=layers)


def _named_model(file: SpecFile, role: Role) -> tuple[str, str | None]:
    """The name of a model that exists, and the revision that is meant: what a lock says, else what was asked for."""
    section = _section(file, role)
    assert section.model is not None
    settled = None if file.pins.only_offline else file.pins.model(section.model, section.revision)
    return section.model, settled or section.revision


def _of_hub(file: SpecFile, role: Role, ask: Callable[[str, str | None], T]) -> T:
    """What `ask` says of a hub model's name and revision; where the hub gives no answer, of the commit in the lock."""
    name, revision = _named_model(file, role)
    try:
        return file.once(("hub", ask, name, revision), lambda: ask(name, revision))
    except UnreachableError:
        settled = file.pins.model(name, _section(file, role).revision)
        if settled is None or settled == revision:
            raise
        return file.once(("hub", ask, name, settled), lambda: ask(name, settled))


def _pinned_dataset(file: SpecFile, name: str, revision: str | None) -> str:
    settled = file.pins.dataset(name, revision)
    if settled is not None and not file.pins.only_offline:
        return settled
    try:
        return file.once(("data set", name, revision), lambda: pinned_dataset(name, revision))
    except UnreachableError:
        if settled is None:
            raise
        return settled


def _section(file: SpecFile, role: Role) -> TeacherSpec | StudentSpec:
    return file.spec.teacher if role == "teacher" else file.spec.student


def data_files(file: SpecFile) -> list[Path]:
    """The local files that hold the text, in their order, each once."""
    data = file.spec.data
    if data is not None and data.corpus == "python_stdlib":
        return file.once("python_stdlib", python_stdlib)
    patterns = (data.files or ()) if data is not None else ()
    matches = [path for i, pattern in enumerate(patterns) for path in _matches(file, i, pattern)]
    return list(dict.fromkeys(matches))


def text_source(file: SpecFile) -> Source:
    """The text: digests of its files, or a pinned data set."""
    return file.known("text", ("data",), lambda: _text_source(file))


def _text_source(file: SpecFile) -> Source:
    data = file.spec.data
    assert data is not None
    if data.dataset is not None:
        commit = _pinned_dataset(file, data.dataset, data.revision)
        identity = {"hub": data.dataset, "revision": commit, "config": data.config, "split": data.split or "train"}
        return Source("hub_dataset", identity, {"asked": data.revision})
    files = data_files(file)
    return Source(
        "text",
        {
            "format": data.format or _format(files[0]),
            "files": [{"sha256": _digest(file, path), "bytes": path.stat().st_size} for path in files],
        },
        {"files": [str(path) for path in files], "name": text_name(data), "names": file_names(file, files)},
    )


def resolve_path(file: SpecFile, place: tuple[str | int, ...], path: str) -> Path:
    """The absolute path that a spec means by the `path` that stands at `place`."""
    folder = file.folder(place)
    try:
        return (folder / Path(path).expanduser()).resolve()
    except RuntimeError:  # "~nobody": no such user
        return folder / path


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a name that is too long
        return False


def _matches(file: SpecFile, index: int, pattern: str) -> list[Path]:
    """Files by a pattern, sorted. Links are not followed: the ending of their own name says what they are."""
    try:
        absolute = file.folder(("data", "files", index)) / Path(pattern).expanduser()
        found = Path(absolute.anchor).glob(str(absolute.relative_to(absolute.anchor)))
        return sorted(path for path in found if path.is_file())
    except (OSError, ValueError, NotImplementedError, RuntimeError):
        return []  # too long a name, "**" inside a name, no name at all, "~nobody"


def _format(path: Path) -> str | None:
    """The format of a file by its ending; None for an ending that says nothing about it."""
    return _FORMATS.get(path.suffix.lower())
