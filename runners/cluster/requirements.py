"""What the environment of a job needs: what boomspec and its runners import, in the versions installed here."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from contextlib import suppress
from importlib import metadata

from boomspec.core.machine import installed
from boomspec.store import is_url, packages_of

_FROM_THE_CLUSTER = ("boomspec", "ray")  # never installed for a job: the one travels with it, the other runs it
_NAME, _EXTRA = re.compile(r"[A-Za-z0-9._-]+"), re.compile(r"extra\s*==\s*[\"']([^\"']+)")


def requirements(store: str, *, trackers: Collection[str] = ()) -> list[str]:
    """`name==version` of each: what tasks import, what reaches the store and the trackers, and what changes results."""
    wanted = {*installed(), *_declared({"run", *trackers}), *(packages_of(store) if is_url(store) else ())}
    versions = {}
    for name in {_plain(name) for name in wanted} - set(_FROM_THE_CLUSTER):
        with suppress(metadata.PackageNotFoundError):  # what is not needed here may be missing here
            versions[name] = metadata.version(name)
    # "2.13.0+cpu" says which build, which is the cluster's choice.
    return [f"{name}=={version.partition('+')[0]}" for name, version in sorted(versions.items())]


def _declared(extras: Collection[str]) -> Iterator[str]:
    """The names of boomspec's requirements, and of those that these extras add."""
    for text in metadata.requires("boomspec") or ():
        name, extra = _NAME.match(text), _EXTRA.search(text)
        if name is not None and (extra is None or extra[1] in extras):
            yield name[0]


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
