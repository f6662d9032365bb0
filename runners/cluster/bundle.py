"""What a submitted job needs: the files that travel to the cluster, and the packages to be installed there.

    boomspec/...  runners/...  job/graph.json  job/lock.json

The two packages travel as modules and not in the working folder: Ray unpacks a working folder again whenever a node of
the same machine sets it up, while others import from it, and modules only once. It names each by its content, so that
it uploads the packages once.
"""

import re
import shutil
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import boomspec
import runners
from boomspec.core.errors import BoomspecError
from boomspec.core.machine import installed
from boomspec.core.sizes import shown_bytes
from boomspec.store import is_url, packages_of

# Code and the packages' data (`package-data` in pyproject.toml), nothing else that may lie in their folders.
SHIPPED = ("**/*.py", "**/*.jinja", "templates/**/*.yaml", "**/*.schema.json", "**/*.css", "**/*.js", "py.typed")
LARGEST = 64 << 20  # bytes; Ray keeps it, packed, in the memory of the head
_JOB = "job"
_FROM_THE_CLUSTER = ("boomspec", "ray")  # never installed for a job: the one travels with it, the other runs it
_NAME, _EXTRA = re.compile(r"[A-Za-z0-9._-]+"), re.compile(r"extra\s*==\s*[\"']([^\"']+)")


def package_files() -> Iterator[tuple[str, Path]]:
    """Names in the bundle, and files, of the two packages."""
    for package in (boomspec, runners):
        folder = Path(package.__file__ or "").parent
        for path in sorted({path for pattern in SHIPPED for path in folder.glob(pattern)}):
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
        message = f"what would be sent to the cluster has {shown_bytes(size)}, more than {shown_bytes(most)}: {parts}"
        raise BoomspecError(message, hint="submit fewer experiments at once: SPEC#LABEL names one")
    for name, path in members:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    return Bundle((folder / boomspec.__name__, folder / runners.__name__), folder / _JOB, size)


def requirements(store: str, *, trackers: Collection[str] = ()) -> list[str]:
    """`name==version` of each: what tasks import, what reaches the store and the trackers, and what changes results."""
    extras, declared = {"run", *trackers}, set[str]()
    for text in metadata.requires("boomspec") or ():
        found, extra = _NAME.match(text), _EXTRA.search(text)
        if found is not None and (extra is None or extra[1] in extras):
            declared.add(found[0])
    wanted = {*installed(), *declared, *(packages_of(store) if is_url(store) else ())}
    versions = {}
    for name in {re.sub(r"[-_.]+", "-", name).lower() for name in wanted} - set(_FROM_THE_CLUSTER):
        with suppress(metadata.PackageNotFoundError):  # what is not needed here may be missing here
            versions[name] = metadata.version(name)
    # "2.13.0+cpu" says which build, which is the cluster's choice.
    return [f"{name}=={version.partition('+')[0]}" for name, version in sorted(versions.items())]
