"""The text that a spec reads: find, check and digest its files, or pin its data set.

A file is identified by its content, a data set by its commit. Where they lie is only their location.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from boomspec.compile import text_files
from boomspec.compile.places import digest_of, path_text
from boomspec.core.errors import BoomspecError, Problem
from boomspec.core.graph import HELD_OUT_TEXT, Source
from boomspec.models.hub import UnreachableError, pinned_dataset
from boomspec.spec.sections.data import SourceSpec
from boomspec.spec.spec_file import SpecFile, memoized_for, request
from boomspec.spec.variables import has_variables
from boomspec.spec.yaml_reader import Location

FOLDER_HINT = "a folder gives its files with known endings (.txt, .jsonl, .json, .parquet, .gz, .zst); hidden ones not"
_SEEN = "held-out text must not be seen in training"
_COUNTED = 64 << 20  # bytes of files of rows that are read at once to count them: more is not cheap
_FILES: Location = ("files",)
_HELD_OUT_FILES: Location = ("held_out", "files")


class FilesEntry(NamedTuple):
    """One entry of `files`, as it is written, and its files, without those of the entries before it."""

    place: Location
    text: str
    files: tuple[Path, ...]
    matches: bool  # any file, also one of the entries before it


def every_file(file: SpecFile) -> list[Path]:
    """The local files of all sources, those that are held out among them."""
    names = file.spec.data.texts if file.spec.data is not None else ()
    return [path for name in names for below in (_FILES, _HELD_OUT_FILES) for path in data_files(file, name, below)]


def place_of_text(name: str) -> Location:
    """Where the fields of a source stand in a spec; "" is the one text of a spec without names."""
    return ("data", "sources", name) if name else ("data",)


def _text(file: SpecFile, name: str) -> SourceSpec:
    assert file.spec.data is not None
    return file.spec.data.texts[name]


@memoized_for("data")
def entries(file: SpecFile, name: str, below: Location = _FILES) -> list[FilesEntry]:
    """The entries of `files` of a source, or those of its `held_out.files`."""
    found: list[FilesEntry] = []
    seen: set[Path] = set()
    data, place = _text(file, name), (*place_of_text(name), *below)
    section = data if below == _FILES else data.held_out
    for i, text in enumerate((section and section.files) or ()):
        matched = text_files.matching(file.folder((*place, i)), path_text(file, (*place, i), text), format=data.format)
        # "a/../b/x.txt" is b/x.txt once more; a link under another name is a document of its own.
        given = {path.parent.resolve() / path.name: path for path in matched}
        files = [path for known, path in given.items() if known not in seen]
        seen.update(given)
        found.append(FilesEntry((*place, i), text, tuple(files), bool(matched)))
    return found


def data_files(file: SpecFile, name: str = "", below: Location = _FILES) -> list[Path]:
    """The local files that hold the text, or what is held out, in their order, each once."""
    if below == _FILES and _text(file, name).corpus is not None:
        return file.once("python_stdlib", text_files.python_stdlib)
    return [path for entry in entries(file, name, below) for path in entry.files]


def text_problems(file: SpecFile) -> Iterator[Problem]:
    """Problems of the files that hold the text of every source, without reading them."""
    assert file.spec.data is not None
    for name, data in file.spec.data.texts.items():
        yield from _text_problems(file, name, data)


def _text_problems(file: SpecFile, name: str, data: SourceSpec) -> Iterator[Problem]:
    at = place_of_text(name)
    for entry in [*entries(file, name), *entries(file, name, _HELD_OUT_FILES)]:
        if not entry.matches:
            folder = file.folder(entry.place)
            is_folder = (folder / path_text(file, entry.place, entry.text)).is_dir()
            hint = FOLDER_HINT if is_folder else f"paths are relative to {folder}"
            yield file.problem(entry.place, f"no file matches '{entry.text}'", hint)
    for below in (_FILES, _HELD_OUT_FILES):
        files = [path for entry in entries(file, name, below) for path in entry.files]
        formats = {} if data.format else {text_files.format_of(path): path.name for path in files}
        if None in formats:
            hint = "give it: format: text, jsonl, json or parquet"
            yield file.problem((*at, *below), f"the format of '{formats[None]}' is not known by its ending", hint)
        elif len(formats) > 1:
            message = f"files of several formats ({', '.join(sorted(map(str, formats)))})"
            yield file.problem((*at, *below), message, "give files of one format, or name it: format: ...")
    trained = [path for entry in entries(file, name) for path in entry.files]
    if {data.format or text_files.format_of(path) for path in trained} == {"text"}:  # one document each
        rest, split = range(len(trained))[data.skip :], data.held_out
        held_out = len(rest[split.offset :: split.every]) if split is not None and split.every is not None else None
        if len(rest) == (held_out or 0):
            hint = "see data.skip and data.held_out"
            yield file.problem(at, f"no document is left to train on: {len(trained)} in all", hint)
        elif held_out == 0:
            message = f"no document would be held out: there are {len(trained)}, and a text file is one document"
            yield file.problem((*at, "held_out"), message)
    resolved = {path.resolve() for path in trained}
    for entry in entries(file, name, _HELD_OUT_FILES):
        if both := [path for path in entry.files if path.resolve() in resolved]:
            message = f"'{both[0].name}' is trained on, too: it is one of data.files"
            yield file.problem(entry.place, message, _SEEN)


@memoized_for("data")
def text_source(file: SpecFile, name: str = "") -> Source:
    """The text of a source: digests of its files, or a pinned data set."""
    data = _text(file, name)
    if data.dataset is None:
        return _of_files(file, name, "text", _FILES)
    hub, revision = data.dataset, data.revision
    locked = file.pins.datasets.get(request(hub, revision))
    commit = None if file.pins.only_offline else locked
    if commit is None:
        try:
            commit = file.once(("data set", hub, revision), lambda: pinned_dataset(hub, revision))
        except BoomspecError as error:
            if locked is None or not isinstance(error, UnreachableError):
                raise file.error_at((*place_of_text(name), "dataset"), error.message, error.hint) from error
            commit = locked
    identity = {"hub": hub, "revision": commit, "config": data.config, "split": data.split}
    return Source("hub_dataset", identity, {"asked": revision})


@memoized_for("data")
def held_out_source(file: SpecFile, name: str = "") -> Source | None:
    """The held-out text of a source, where it has files of its own."""
    files = data_files(file, name, _HELD_OUT_FILES)
    if not files:
        return None
    source = _of_files(file, name, HELD_OUT_TEXT, _HELD_OUT_FILES)
    trained = {found["sha256"] for found in text_source(file, name).identity.get("files", ())}
    for path, found in zip(files, source.identity["files"], strict=True):
        if found["sha256"] in trained and found["bytes"]:
            message = f"'{path.name}' is trained on, too: a file of data.files has the same content"
            raise file.error_at((*place_of_text(name), *_HELD_OUT_FILES), message, _SEEN)
    return source


def _of_files(file: SpecFile, name: str, kind: str, below: Location) -> Source:
    data, listed, files = _text(file, name), entries(file, name, below), data_files(file, name, below)
    format = data.format or text_files.format_of(files[0])
    for path in files if format != "parquet" else ():
        with path.open("rb") as opened:
            if opened.read(2) in text_files.UTF_16:  # it would be read as something else or not at all
                hint = f"save it as UTF-8: iconv -f UTF-16 -t UTF-8 {path.name}"
                raise file.error_at((*place_of_text(name), *below), f"'{path}' is UTF-16, not UTF-8", hint)
    identity = [{"sha256": digest_of(file, path), "bytes": path.stat().st_size} for path in files]
    # What the files are called on every machine: their paths from where the spec's entries, or the corpus, start.
    parts = [text_files.plain_part(text_files.home_path(path_text(file, entry.place, entry.text))) for entry in listed]
    # The value of a variable differs from machine to machine, also where it leads into the spec's own folder.
    bases = [part for part, entry in zip(parts, listed, strict=True) if has_variables(entry.text)]
    bases += [*(file.folder(entry.place) for entry in listed), *parts]
    bases = bases or [Path(os.path.commonpath([path.parent for path in files]))]
    # As texts: a corpus of many files in a sweep of many experiments would be slow with paths.
    starts = [str(base / "_")[:-1] for base in bases]
    names = [next((str(f)[len(start) :] for start in starts if str(f).startswith(start)), f.name) for f in files]
    written = [Path(entry.text) for entry in listed]
    shown = (str(p.relative_to(text_files.plain_part(p).parent)) if p.is_absolute() else str(p) for p in written)
    location = {
        "files": [str(path) for path in files],
        "name": ", ".join(shown) if listed else data.corpus,
        "names": names,
        "entries": [_counted(entry, format) for entry in listed],
    }
    return Source(kind, {"format": format, "files": identity}, location)


def _counted(entry: FilesEntry, format: str | None) -> dict[str, object]:
    """Files and bytes of an entry, for people, and documents where counting them is cheap."""
    size = sum(path.stat().st_size for path in entry.files)
    documents: int | None = None
    if format == "text":
        documents = len(entry.files)
    elif format == "parquet":
        rows = [text_files.parquet_rows(path) for path in entry.files]
        documents = None if None in rows else sum(filter(None, rows))
    elif format == "jsonl" and size <= _COUNTED and not any(p.suffix in text_files.COMPRESSED for p in entry.files):
        documents = sum(1 for path in entry.files for line in path.read_bytes().split(b"\n") if line.strip())
    return {"entry": entry.text, "files": len(entry.files), "documents": documents, "bytes": size}
