"""Upload a graph's external inputs (models, texts) for machines that lack the files.

    <store>/source/<source id>/files/   those of a text, a model, a tokenizer or a folder of lm-eval tasks
                               data/    files and folders outside of that folder that the tasks name

An uploaded source is an artifact, and its id covers the digests of its files. A machine reads its own files where they
match the graph, else the store's.
"""

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from boomspec.core.errors import BoomspecError
from boomspec.core.graph import CODE, Source
from boomspec.core.identity import file_digest, folder_digest
from boomspec.core.task_data import DATA, changed_data, data_files, data_paths, data_places, moved
from boomspec.store.folder import Store
from boomspec.store.record import SOURCE

_FILES = "files"  # a folder with nothing else in it: folders of lm-eval tasks are compared as a whole
_READ_WHOLE = 1 << 20  # bytes; without `through`, larger files are compared by size alone


def is_local(source: Source) -> bool:
    """Whether it lies in files of some machine; else it is on the hub, or comes with lm-eval."""
    return any(key in source.location for key in ("files", "folder", DATA))


def missing_files(source: Source) -> list[Path]:
    """The places on this machine where a source should be and is not. The hub is not asked."""
    places = [*source.location.get("files", ()), source.location.get("folder"), *data_paths(source)]
    return [path for path in map(Path, filter(None, places)) if not path.exists()]


def is_present(source: Source) -> bool:
    """Whether this machine has the files that the graph was compiled with; large ones are compared by size."""
    return next(changed_files(source, through=False), None) is None


def changed_files(source: Source, *, through: bool = True) -> Iterator[Path]:
    """The local files, or the folder, that differ from a source; `through`: read large files, too, not only sizes."""

    def differs(path: Path, sha256: str, size: int | None) -> bool:
        if not path.is_file():
            return through or not path.is_fifo()  # a pipe can be read only once
        if size is not None and path.stat().st_size != size:
            return True
        return (through or path.stat().st_size <= _READ_WHOLE) and file_digest(path) != sha256

    yield from (path for path, sha256, size in _own_files(source).values() if sha256 and differs(path, sha256, size))
    if "folder" in source.location and "sha256" not in source.identity:
        folder = Path(source.location["folder"])
        if not folder.is_dir() or folder_digest(folder) != source.identity["folder"]:
            yield folder
    yield from changed_data(source, at_most=None if through else _READ_WHOLE)


def uploaded(store: Store, sources: Iterable[Source]) -> set[str]:
    """The ids of those that the store has; not of those that cannot be read there."""
    found = store.survey(((SOURCE, source.id) for source in sources if is_local(source)), unread={})
    return {source_id for (_, source_id), damage in found.items() if damage is None}


def upload(store: Store, source: Source) -> int:
    """Put a source's files into the store, if missing; their bytes. Raises BoomspecError where they have changed."""
    with store.claimed(SOURCE, source.id), store.workspace(SOURCE, source.id) as workspace:
        if uploaded(store, [source]):
            return 0
        if store.has(SOURCE, source.id):  # damaged
            store.discard(SOURCE, source.id)
        data = {f"{DATA}/{name}": path for name, path in data_files(source)}
        places = {f"{_FILES}/{name}": path for name, (path, *_) in _own_files(source).items()} | data
        for name, path in places.items():
            target = workspace.path / name
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                shutil.copyfile(path, target)
            except OSError as error:
                raise BoomspecError(f"{path}: cannot be read: {error.strerror or error}") from error
        for changed in changed_files(_moved_to(workspace.path, source)):
            name = changed.relative_to(workspace.path).as_posix()
            original = places.get(name, source.location.get("folder"))
            raise BoomspecError(f"{original}: has changed since the spec was compiled", hint="compile the spec again")
        size = sum((workspace.path / name).stat().st_size for name in places)
        store.publish(workspace, SOURCE, source.id, {"source": source.kind, "identity": source.identity}, {})
        return size


def upload_missing(store: Store, sources: Iterable[Source]) -> Iterator[tuple[Source, int]]:
    """Upload those that this machine has and the store has not. Yields each with its bytes."""
    sources = [source for source in sources if is_local(source)]
    there = uploaded(store, sources)
    for source in sources:
        if source.id not in there and is_present(source):
            yield source, upload(store, source)


def readable_source(store: Store, source: Source) -> Source:
    """The source in this machine's own files, else the store's; unchanged where neither has it: the reader reports."""
    if not is_local(source) or is_present(source) or not uploaded(store, [source]):
        return source
    return _moved_to(store.fetch(SOURCE, source.id), source)


def source_name(source: Source) -> str:
    """The name for people."""
    places = [source.location.get("folder"), *source.location.get("files", ()), *data_paths(source), source.id[:12]]
    return f"{source.kind.replace('_', ' ')} {source.location.get('name', next(filter(None, places)))}"


def _own_files(source: Source) -> dict[str, tuple[Path, str, int | None]]:
    """Its files by their names below `files/` in the store: the place of each, its sha256 and size, where known."""
    location, identity = source.location, source.identity
    if "files" in location:
        known = enumerate(zip(map(Path, location["files"]), identity["files"], strict=True))
        return {f"{i:06}{path.suffix}": (path, file["sha256"], file["bytes"]) for i, (path, file) in known}
    if "folder" not in location:
        return {}
    folder = Path(location["folder"])
    if "sha256" in identity:  # a model or a tokenizer
        digests = {**identity["sha256"], **identity.get(CODE, {})}
        return {name: (folder / name, sha256, None) for name, sha256 in digests.items()}
    inside = (path for path in sorted(folder.rglob("*")) if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(folder).as_posix(): (path, "", None) for path in inside}


def _moved_to(artifact: Path, source: Source) -> Source:
    if "files" in source.location:
        files = [str(artifact / _FILES / name) for name in _own_files(source)]
        return replace(source, location={**source.location, "files": files})
    places = data_places(source, artifact / DATA)
    if "folder" in source.location:
        places[source.location["folder"]] = str(artifact / _FILES)
    return replace(source, location=moved(source.location, places))
