"""Where what a spec names lies: paths as the spec means them, and the digests of files."""

from __future__ import annotations

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


def digest_of(file: SpecFile, path: Path) -> str:
    """The sha256 of a file, which is read once."""
    return file.once(("digest", path), lambda: file_digest(path))
