"""What a store at a URL holds that no run needs: `garbage.py`, for objects.

Here a killed writer leaves an attempt that no record names. While anybody works with the store it may be his, and is
left alone. What was fetched to this machine can always go: it is fetched again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from boomspec.core.files import RESUME
from boomspec.core.tasks import KINDS
from boomspec.store import RECORD, Store
from boomspec.store.bucket import Bucket, Entry
from boomspec.store.gc import Garbage, Needed, What, age, is_foreign, is_unlisted, size_on_disk
from boomspec.store.leases import living
from boomspec.store.lock import IN_USE
from boomspec.store.remote import RemoteStore
from boomspec.store.runs import PastRun, is_task_id
from boomspec.store.sources import SOURCE
from boomspec.store.twins import MADE_OF

_HIDDEN = re.compile(r"\.(?P<task>[0-9a-f]{64})\.(?P<rest>resume|lease)")
_PROBE = ".probe"
_KINDS = (*KINDS, SOURCE)


def garbage_at_url(store: RemoteStore, needed: Needed, *, forget: Iterable[PastRun], cache: bool) -> Iterator[Garbage]:
    """What can go, in the order in which it should go."""
    bucket = store.bucket
    for run in forget:
        place = f"runs/{run.folder.name}"
        there = bucket.entries(place)
        yield _item(bucket, "run", "", place, there, age(run), first=f"{place}/graph.json")
        if run.folder.is_dir():
            yield Garbage("cache", "", run.folder, size_on_disk(run.folder), "what was brought here of it")
    at_work = living(bucket, IN_USE)
    busy = any(said.get("doing") is None for said in at_work.values())
    names = bucket.names()
    for kind in (kind for kind in _KINDS if kind in names):
        yield from _of_kind(store, kind, bucket.entries(kind), needed, busy=busy)
    for kind in (kind for kind in KINDS if MADE_OF in names and not busy):
        made = store.ids(kind)
        listed = bucket.entries(f"{MADE_OF}/{kind}")
        dead = {name: e for name, e in listed.items() if is_unlisted(name.rpartition("/")[2], made, needed)}
        if dead:
            yield _item(bucket, "leftover", kind, f"{MADE_OF}/{kind}", dead, "its artifact is gone")
    for folder, alive in ((IN_USE, at_work), (_PROBE, {})):
        for name, entry in bucket.entries(folder).items() if folder in names else ():
            if name not in alive and not busy:
                yield _item(bucket, "leftover", "", name, {name: entry}, "its process is dead")
    for name, upload in bucket.unfinished().items() if not busy else ():
        kind = name.partition("/")[0]
        yield Garbage("leftover", kind, f"{bucket.url}/{name}", 0, "an upload that never ended", (name,), upload)
    if cache:
        yield from _of_this_machine(store)


def _of_kind(
    store: RemoteStore, kind: str, listing: dict[str, Entry], needed: Needed, *, busy: bool
) -> Iterator[Garbage]:
    bucket = store.bucket
    groups: dict[str, dict[str, Entry]] = {}
    for name, entry in listing.items():
        groups.setdefault(name.split("/")[1], {})[name] = entry
    judged = store.judged([(kind, name) for name in groups if is_task_id(name)], listing)
    for name, there in groups.items():
        place = f"{kind}/{name}"
        if is_task_id(name):
            damage, record = judged.get((kind, name), (None, None))
            named = f"{place}/{RECORD}"
            if named in there and record is None and _is_foreign(bucket, named):
                continue
            if named in there and damage is None and (needed.unjudged or name in needed.tasks):
                own = f"{place}/{record['attempt']}/" if record is not None else place
                there = {n: entry for n, entry in there.items() if n != named and not n.startswith(own)}
            elif named in there:
                if not needed.unjudged:
                    what: What = "artifact" if damage is None else "broken artifact"
                    yield _item(bucket, what, kind, place, there, damage or "of no run", first=named)
                continue
            if there and not busy:
                yield _item(bucket, "leftover", kind, place, there, "its process is dead")
        elif (hidden := _HIDDEN.fullmatch(name)) is not None and not busy:
            task = hidden["task"]
            if hidden["rest"] == "lease":
                yield _item(bucket, "leftover", kind, place, there, "its process is dead")
            elif judged.get((kind, task), ("", None))[0] is None:
                yield _item(bucket, "checkpoints", kind, place, there, "its task is finished")
            elif not needed.unjudged and task not in needed.tasks:
                yield _item(bucket, "checkpoints", kind, place, there, "of no run")


def _of_this_machine(store: Store) -> Iterator[Garbage]:
    """What was fetched; not the checkpoints, which may not be sent yet, nor what tells of runs."""
    for kind in (*_KINDS, "records", "locks", "cache"):
        folder = store.root / kind
        found = sorted(folder.iterdir()) if folder.is_dir() else []
        for path in found if kind in _KINDS else [folder] * bool(found):
            if not path.name.endswith(RESUME):
                yield Garbage("cache", "", path, size_on_disk(path), "it is fetched again")


def _is_foreign(bucket: Bucket, record: str) -> bool:
    try:
        return is_foreign(bucket.read(record))
    except FileNotFoundError:
        return False


def _item(
    bucket: Bucket, what: What, kind: str, place: str, there: dict[str, Entry], reason: str, *, first: str = ""
) -> Garbage:
    """`first`: the object without which nobody looks for the others."""
    names = sorted(there, key=lambda name: (name != first, name))
    size = sum(entry.size for entry in there.values())
    return Garbage(what, kind, f"{bucket.url}/{place}", size, reason, tuple(names))
