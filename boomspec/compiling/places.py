"""Where what a spec names lies: paths as the spec means them, and the digests of files."""

from __future__ import annotations

import difflib
from pathlib import Path

from boomspec.identity import file_digest
from boomspec.language.spec import SpecFile


def resolve_path(file: SpecFile, place: tuple[str | int, ...], path: str) -> Path:
    """The absolute path that a spec means by the `path` that stands at `place`."""
    folder = file.folder(place)
    try:
        return (folder / Path(path).expanduser()).resolve()
    except RuntimeError:  # "~nobody": no such user
        return folder / path


def is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a name that is too long
        return False


def is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # as above
        return False


def similar_folder(path: Path) -> str | None:
    """A question whether a folder beside `path`, which is none, is meant: one whose name is nearly the same."""
    for folder in path.parents:
        if is_folder(folder):
            break
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
