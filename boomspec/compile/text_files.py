"""Find the text files that an entry of `files` means: a file, those of a folder, or those that match a pattern.

    folder of the spec x entry --matching--> files, sorted

A name that exists as it is written wins over what it would match as a pattern. Hidden files and folders are left out
unless the entry writes their dot, and links to folders are not followed.
"""

from __future__ import annotations

import errno
import fnmatch
import os
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path

FORMATS = {
    **dict.fromkeys((".txt", ".text", ".md", ".rst", ".py", ".c", ".h", ".cpp", ".rs", ".go", ".java", ".tex"), "text"),
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".parquet": "parquet",
}
COMPRESSED = (".gz", ".zst")
UTF_16 = (b"\xff\xfe", b"\xfe\xff")  # byte order marks
# Of Python's standard library: tests repeat themselves, encodings are tables, lib2to3 and pydoc_data are generated.
# site-packages and dist-packages lie inside the folder but are not the standard library.
_NO_CORPUS = frozenset(
    {"test", "tests", "idle_test", "encodings", "lib2to3", "pydoc_data", "__pycache__"}
    | {"site-packages", "dist-packages"}
)


def format_of(path: Path) -> str | None:
    """The format of a file by its ending; None for an ending that says nothing about it."""
    if path.suffix.lower() in COMPRESSED:
        inner = FORMATS.get(Path(path.stem).suffix.lower())
        return None if inner == "parquet" else inner  # which compresses its columns itself
    return FORMATS.get(path.suffix.lower())


def python_stdlib() -> list[Path]:
    """The library modules of the running interpreter (*.py), sorted by their path: a text that every machine has."""
    files: list[Path] = []
    for folder, subfolders, names in os.walk(Path(sysconfig.get_path("stdlib")).resolve()):
        subfolders[:] = [name for name in subfolders if name not in _NO_CORPUS]
        files += [Path(folder, name) for name in names if name.endswith(".py")]
    return sorted(files, key=lambda file: file.parts)


def matching(folder: Path, entry: str, *, format: str | None = None) -> list[Path]:
    """The files that an entry means. Of a folder those whose ending says a format, or `format` where it is given."""
    try:
        path = home_path(entry)
        start, parts = (Path(path.anchor), path.parts[1:]) if path.is_absolute() else (folder, path.parts)
        if (start / path).is_dir():
            below = _files_below(start / path)
            return sorted(f for f in below if format_of(f) is not None and format in (None, format_of(f)))
        return sorted(found for found in _found(start, parts) if found.is_file())
    except (OSError, ValueError, RuntimeError):
        return []  # too long a name, a NUL in it, "~nobody"


def home_path(text: str) -> Path:
    """The path with the home that it begins with. "./~x" is a folder of that name, which pathlib forgets."""
    return Path(text).expanduser() if text.startswith("~") else Path(text)


def plain_part(entry: Path) -> Path:
    """The folders of an entry in front of its first pattern, and not its last part."""
    parts: list[str] = []
    for part in entry.parts[:-1]:
        if is_pattern(part) and not Path(*parts, part).exists():
            break
        parts.append(part)
    return Path(*parts)


def is_pattern(part: str) -> bool:
    return any(sign in part for sign in "*?[")


def _found(start: Path, parts: Sequence[str]) -> Iterator[Path]:
    """What matches the parts of an entry below `start`."""
    if not parts:
        yield start
        return
    part, rest = parts[0], parts[1:]
    if not is_pattern(part) or os.path.lexists(start / part):
        yield from _found(start / part, rest)
    elif part == "**":
        if not rest:
            yield from _files_below(start)
            return
        yield from _found(start, rest)
        for name in _names(start, hidden=False):
            if (start / name).is_dir() and not (start / name).is_symlink():
                yield from _found(start / name, parts)
    else:
        for name in _names(start, hidden=part.startswith(".")):
            if fnmatch.fnmatchcase(name, part):
                yield from _found(start / name, rest)


def _files_below(folder: Path) -> Iterator[Path]:
    for name in _names(folder, hidden=False):
        path = folder / name
        if path.is_dir():
            if not path.is_symlink():
                yield from _files_below(path)
        elif path.is_file():
            yield path


def _names(folder: Path, *, hidden: bool) -> list[str]:
    try:
        names = [path.name for path in folder.iterdir()]
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return []  # not everything that a pattern matches holds what the rest of it says
        raise
    return sorted(name for name in names if hidden or not name.startswith("."))
