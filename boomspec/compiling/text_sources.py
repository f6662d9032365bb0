"""The text that a spec reads: its files found, checked and digested, or its data set pinned.

The identity of a file is its content, that of a data set its commit. Where a thing lies is only its location.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from boomspec.compiling.place_names import file_names, text_name
from boomspec.compiling.places import digest_of
from boomspec.corpus import python_stdlib
from boomspec.errors import Problem
from boomspec.graph import Source
from boomspec.language.data import DataSpec
from boomspec.language.spec import SpecFile
from boomspec.models.hub import UnreachableError, pinned_dataset

_FORMATS = {
    **dict.fromkeys((".txt", ".text", ".md", ".rst", ".py", ".c", ".h", ".cpp", ".rs", ".go", ".java", ".tex"), "text"),
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
}


def text_problems(file: SpecFile, data: DataSpec) -> Iterator[Problem]:
    """Problems of the files that hold the text, without reading them."""
    for i, pattern in enumerate(data.files or ()):
        if not _matches(file, i, pattern):
            place = ("data", "files", i)
            message, hint = f"no file matches '{pattern}'", f"paths are relative to {file.folder(place)}"
            yield file.problem(place, message, hint)
    if data.files is not None:
        yield from _data_problems(file, data)


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
            "files": [{"sha256": digest_of(file, path), "bytes": path.stat().st_size} for path in files],
        },
        {"files": [str(path) for path in files], "name": text_name(data), "names": file_names(file, files)},
    )


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
