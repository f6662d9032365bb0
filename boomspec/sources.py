"""What a spec reads and does not make: its paths checked, its contents digested, its revisions pinned.

The identity of a file is its content, the identity of something on the hub is its commit. Where a thing
lies is only its location.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from boomspec.architecture import llama_facts
from boomspec.checkpoint import checkpoint_files
from boomspec.corpus import python_stdlib
from boomspec.errors import Problem
from boomspec.facts import ModelFacts, read_facts
from boomspec.graph import Source
from boomspec.hub import cached_model, hub_folder, pinned_dataset, pinned_model
from boomspec.identity import file_digest
from boomspec.language import DataSpec
from boomspec.model_files import tokenizer_files, travelling_files
from boomspec.published import STUDENT_CONFIG, read_student_mapping
from boomspec.spec import SpecFile
from boomspec.tasks import Architecture
from boomspec.training import PretrainSpec

Role = Literal["teacher", "student"]

_FORMATS = {
    **dict.fromkeys((".txt", ".text", ".md", ".rst", ".py", ".c", ".h", ".cpp", ".rs", ".go", ".java", ".tex"), "text"),
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
}
_HUB_ID = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96})?")


def check_paths(file: SpecFile) -> list[Problem]:
    """Problems of what a spec names, without reading what it holds."""
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
    if spec.data is not None and spec.data.files is not None:
        for i, pattern in enumerate(spec.data.files):
            if not _matches(file, pattern):
                message, hint = f"no file matches '{pattern}'", f"paths are relative to {file.folder}"
                problems.append(file.problem(("data", "files", i), message, hint))
        problems += _data_problems(file, spec.data)
    if spec.evaluate is not None and spec.evaluate.tasks_folder is not None:
        folder = resolve_path(file, spec.evaluate.tasks_folder)
        if not _is_folder(folder):
            problems.append(file.problem(("evaluate", "tasks_folder"), f"'{folder}' is not a folder"))
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
    section = file.spec.teacher if role == "teacher" else file.spec.student
    if section.model is None:
        return None
    folder = resolve_path(file, section.model)
    local = _is_folder(folder) or section.model.startswith((".", "/", "~"))
    if local and not _is_folder(folder):
        raise file.error(file.problem((role, "model"), f"folder '{folder}' does not exist"))
    return folder if local else None


def local_facts(file: SpecFile) -> ModelFacts | None:
    """The teacher's facts where no network is needed to know them, else None."""
    teacher = file.spec.teacher
    if teacher.pretrain is not None and file.spec.data is not None:
        return llama_facts(architecture(teacher.pretrain, file.spec.data.sequence_length))
    folder = model_folder(file, "teacher")
    if folder is None and teacher.model is not None:
        cached = cached_model(teacher.model, teacher.revision)
        folder = cached if cached and any(cached.glob("*.safetensors")) else None
    return None if folder is None else read_facts(folder)


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
    name, revision = _named_model(file, role)
    folder = model_folder(file, role)
    if folder is None:
        commit, facts = pinned_model(name, revision)
        identity = {"hub": name, "revision": commit}
        return facts, Source("model", identity, {"hub": name}), Source("tokenizer", identity, {"hub": name})
    facts = read_facts(folder)
    tokenizer = tokenizer_files(folder)
    if not tokenizer and role == "teacher" and file.spec.data is not None:
        hint = "save one there: tokenizer.save_pretrained(folder)"
        raise file.error(file.problem((role, "model"), f"{folder} holds no tokenizer", hint))
    files = [folder / "config.json", *checkpoint_files(folder), *travelling_files(folder)]
    return (
        facts,
        Source("model", {"sha256": {p.name: file_digest(p) for p in files}}, {"folder": str(folder)}),
        Source("tokenizer", {"sha256": {p.name: file_digest(p) for p in tokenizer}}, {"folder": str(folder)}),
    )


def student_mapping(file: SpecFile, layers: int) -> tuple[int, ...]:
    """The kept layers, of a teacher of `layers`, that a student which exists says it was made from."""
    name, revision = _named_model(file, "student")
    folder = model_folder(file, "student") or hub_folder(name, revision, STUDENT_CONFIG)
    return read_student_mapping(folder, layers=layers)


def _named_model(file: SpecFile, role: Role) -> tuple[str, str | None]:
    section = file.spec.teacher if role == "teacher" else file.spec.student
    assert section.model is not None
    return section.model, section.revision


def data_files(file: SpecFile) -> list[Path]:
    """The local files that hold the text, in their order, each once."""
    data = file.spec.data
    if data is not None and data.corpus == "python_stdlib":
        return python_stdlib()
    patterns = (data.files or ()) if data is not None else ()
    matches = [path for pattern in patterns for path in _matches(file, pattern)]
    return list(dict.fromkeys(matches))


def text_source(file: SpecFile) -> Source:
    """The text: digests of its files, or a pinned data set."""
    data = file.spec.data
    assert data is not None
    if data.dataset is not None:
        commit = pinned_dataset(data.dataset, data.revision)
        identity = {"hub": data.dataset, "revision": commit, "config": data.config, "split": data.split or "train"}
        return Source("hub_dataset", identity, {})
    files = data_files(file)
    return Source(
        "text",
        {
            "format": data.format or _format(files[0]),
            "files": [{"sha256": file_digest(path), "bytes": path.stat().st_size} for path in files],
        },
        {"files": [str(path) for path in files]},
    )


def resolve_path(file: SpecFile, path: str) -> Path:
    try:
        return (file.folder / Path(path).expanduser()).resolve()
    except RuntimeError:  # "~nobody": no such user
        return file.folder / path


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a name that is too long
        return False


def _matches(file: SpecFile, pattern: str) -> list[Path]:
    """Files by a pattern, sorted. Links are not followed: the ending of their own name says what they are."""
    try:
        absolute = file.folder / Path(pattern).expanduser()
        found = Path(absolute.anchor).glob(str(absolute.relative_to(absolute.anchor)))
        return sorted(path for path in found if path.is_file())
    except (OSError, ValueError, NotImplementedError, RuntimeError):
        return []  # too long a name, "**" inside a name, no name at all, "~nobody"


def _format(path: Path) -> str | None:
    """The format of a file by its ending; None for an ending that says nothing about it."""
    return _FORMATS.get(path.suffix.lower())
