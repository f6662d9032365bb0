"""Find and hash the local data files that lm-eval tasks read.

    identity["tasks"]   the tasks whose files name data
    identity["data"]    for each file or folder outside of the tasks' folder: sha256 by name
    location["data"]    where each of them is: {"path", "is_file"}
    location["asks"]    by task: the fields of its YAML that name data, with paths as they are on this machine

Files inside the tasks' folder are part of the folder's digest; only `asks` names them. A single file is called "file"
with its ending, so that its identity is its content.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from boomspec.core.graph import Source
from boomspec.core.identity import file_digest
from boomspec.core.json_text import mapped

ASKS, TASKS = "asks", "tasks"
DATA = "data"  # in identity and location of a source, and the folder that holds it in the store


def data_folder_files(folder: Path) -> list[Path]:
    """The files of a folder with data, sorted, without hidden ones: what `datasets` may read."""
    parts = {path: path.relative_to(folder).parts for path in folder.rglob("*") if path.is_file()}
    return sorted(path for path, names in parts.items() if not any(name.startswith((".", "__")) for name in names))


def file_name(path: Path) -> str:
    """What a file by itself is called in an identity."""
    return "file" + "".join(path.suffixes[-2:] if path.suffix in (".gz", ".zst", ".bz2", ".xz") else path.suffixes[-1:])


def digests(path: Path) -> dict[str, str]:
    """sha256 by name of a file, or of the files of a folder."""
    if path.is_file():
        return {file_name(path): file_digest(path)}
    return {file.relative_to(path).as_posix(): file_digest(file) for file in data_folder_files(path)}


def _entries(source: Source) -> Iterator[tuple[Path, bool, dict[str, str]]]:
    """Each file or folder of data outside of the tasks' folder: where it is, whether it is a file, sha256 by name."""
    places, names = source.location.get(DATA, ()), source.identity.get(DATA, ())
    yield from ((Path(place["path"]), place["is_file"], own) for place, own in zip(places, names, strict=True))


def data_paths(source: Source) -> list[Path]:
    """The files and folders of data outside of the tasks' folder."""
    return [Path(place["path"]) for place in source.location.get(DATA, ())]


def data_files(source: Source) -> Iterator[tuple[str, Path]]:
    """Each file of that data: its name in the store, and where it is."""
    for i, (path, is_file, names) in enumerate(_entries(source)):
        yield from ((f"{i}/{name}", path if is_file else path / name) for name in names)


def data_places(source: Source, folder: Path) -> dict[str, str]:
    """Where that data is once its files lie in `folder` by their names in the store: new paths by present ones."""
    return {
        str(path): str(folder / str(i) / next(iter(names)) if is_file else folder / str(i))
        for i, (path, is_file, names) in enumerate(_entries(source))
    }


def changed_data(source: Source, *, at_most: int | None) -> Iterator[Path]:
    """Files that are missing or have changed since they were digested, and folders with other files than then.

    Files of more than `at_most` bytes are not read; None: all are read.
    """
    for path, is_file, names in _entries(source):
        if not is_file and {file.relative_to(path).as_posix() for file in data_folder_files(path)} != names.keys():
            yield path
            continue
        for name, sha256 in names.items():
            file = path if is_file else path / name
            read = file.is_file() and (at_most is None or file.stat().st_size <= at_most)
            if not file.is_file() or (read and file_digest(file) != sha256):
                yield file


def moved(location: dict[str, Any], places: dict[str, str]) -> dict[str, Any]:
    """A source's location with paths replaced; `places`: new paths by old ones."""

    def at(path: str) -> str:
        for old in sorted(places, key=len, reverse=True):  # a place may lie in another
            if path == old or path.startswith(f"{old}/"):
                return places[old] + path[len(old) :]
        return path

    return {key: mapped(value, str, at) if key in (DATA, ASKS, "folder") else value for key, value in location.items()}
