"""What travels to a cluster: the two packages, a compiled graph, its lock. Never anybody's working folder.

    boomspec/...  runners/...  graph.json  lock.json

One zip file. The same content makes the same bytes, so that Ray uploads it once.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

import boomspec
import runners
from boomspec.errors import BoomspecError
from boomspec.sizes import shown_bytes

# Code and the packages' data (`package-data` in pyproject.toml), nothing else that may lie in their folders.
SHIPPED = ("**/*.py", "**/*.jinja", "templates/*.yaml", "**/*.schema.json")
LARGEST = 64 << 20  # bytes of the zip file; Ray keeps it in the memory of the head
_EPOCH = (1980, 1, 1, 0, 0, 0)


def package_files() -> Iterator[tuple[str, Path]]:
    """Names in the bundle, and files, of the two packages."""
    for package in (boomspec, runners):
        folder = Path(package.__file__ or "").parent
        found = {path for pattern in SHIPPED for path in folder.glob(pattern)}
        for path in sorted(found):
            if path.is_file() and not path.is_symlink():
                yield f"{package.__name__}/{path.relative_to(folder).as_posix()}", path


def write_bundle(target: Path, *, graph: Path, lock: Path, most: int = LARGEST) -> int:
    """Write the zip file; returns its bytes. Raises BoomspecError where it gets larger than `most` bytes."""
    members = [*package_files(), ("graph.json", graph), ("lock.json", lock)]
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, path in members:
            entry = zipfile.ZipInfo(name, date_time=_EPOCH)
            entry.external_attr, entry.compress_type = 0o644 << 16, zipfile.ZIP_DEFLATED
            archive.writestr(entry, path.read_bytes())
        largest = sorted(archive.infolist(), key=lambda entry: -entry.compress_size)[:3]
    size = target.stat().st_size
    if size > most:
        parts = ", ".join(f"{entry.filename} {shown_bytes(entry.compress_size)}" for entry in largest)
        raise BoomspecError(
            f"what would be sent to the cluster has {shown_bytes(size)}, more than {shown_bytes(most)}: {parts}",
            hint="submit fewer experiments at once: SPEC#LABEL names one",
        )
    return size
