"""What travels to a cluster: the two packages, a compiled graph, its lock. Never anybody's working folder.

    boomspec/...  runners/...  job/graph.json  job/lock.json

The packages go as modules and not in the working folder: Ray unpacks a working folder anew whenever a node of the same
machine sets it up, under the feet of those who import from it, and modules only once. It names each by its content, so
that it uploads the packages once.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import boomspec
import runners
from boomspec.core.errors import BoomspecError
from boomspec.core.sizes import shown_bytes

# Code and the packages' data (`package-data` in pyproject.toml), nothing else that may lie in their folders.
SHIPPED = ("**/*.py", "**/*.jinja", "templates/*.yaml", "**/*.schema.json")
LARGEST = 64 << 20  # bytes; Ray keeps it, packed, in the memory of the head
_JOB = "job"


def package_files() -> Iterator[tuple[str, Path]]:
    """Names in the bundle, and files, of the two packages."""
    for package in (boomspec, runners):
        folder = Path(package.__file__ or "").parent
        found = {path for pattern in SHIPPED for path in folder.glob(pattern)}
        for path in sorted(found):
            if path.is_file() and not path.is_symlink():
                yield f"{package.__name__}/{path.relative_to(folder).as_posix()}", path


@dataclass(frozen=True)
class Bundle:
    """Folders to send: two packages that are modules of the job, and the working folder with its graph and lock."""

    packages: tuple[Path, Path]
    job: Path
    size: int  # bytes


def write_bundle(folder: Path, *, graph: Path, lock: Path, most: int = LARGEST) -> Bundle:
    """Lay out what travels in an empty folder. Raises BoomspecError where it gets larger than `most` bytes."""
    members = [*package_files(), (f"{_JOB}/graph.json", graph), (f"{_JOB}/lock.json", lock)]
    sizes = {name: path.stat().st_size for name, path in members}
    if (size := sum(sizes.values())) > most:
        largest = sorted(sizes, key=lambda name: -sizes[name])[:3]
        parts = ", ".join(f"{Path(name).name} {shown_bytes(sizes[name])}" for name in largest)
        raise BoomspecError(
            f"what would be sent to the cluster has {shown_bytes(size)}, more than {shown_bytes(most)}: {parts}",
            hint="submit fewer experiments at once: SPEC#LABEL names one",
        )
    for name, path in members:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    return Bundle((folder / boomspec.__name__, folder / runners.__name__), folder / _JOB, size)
