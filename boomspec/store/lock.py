"""Who works with a store right now: locks of living processes. A dead process holds none, however it died.

    <store>/.in-use             shared by everything that works with the store; `gc` alone holds it exclusively
    <store>/runs/<run>/.running  shared by the processes that run this graph

Neither says anything by being there: only a lock that is held counts. A store at a URL has no locks: there everybody
writes an object of his own below <url>/.in-use/ again and again (`boomspec/store/leases.py`), and who finds another
one's young does not clean up. Of two who come at once each has written before he looks. A run there is one driver's:
machines that share no folder would write over what the other one tells of it.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Any

from boomspec.core.errors import BoomspecError
from boomspec.core.files import lock
from boomspec.store import Store

if TYPE_CHECKING:
    from boomspec.store.bucket import Bucket

IN_USE, RUNNING = ".in-use", ".running"
_CLEANS = "cleans"  # what `gc` says of itself in its object
_POLL_SECONDS = 2.0
_SETTLED = 8  # renewals of a lease whose holder no longer looks for others


@contextmanager
def using(
    store: Store | Path,
    *,
    run: Path | None = None,
    waiting: Callable[[], None] = lambda: None,
    elsewhere: Callable[[str], None] = lambda said: None,
) -> Iterator[None]:
    """Work with a store: nothing of it is cleaned away meanwhile. `run`: the folder of the run that this is.

    Where it is being cleaned up just now, calls `waiting` and waits for the end of that. A store that cannot be
    written is only read, without a lock where there never was one. Raises BoomspecError where the run is at work on
    another machine, for a store at a URL; calls `elsewhere` when it has to be found out whether it still is.
    """
    root, bucket = _parts(store)
    with ExitStack() as held:
        held.enter_context(_held(root / IN_USE, waiting))
        held.enter_context(_held(run / RUNNING if run is not None else None, lambda: None))
        if bucket is not None:
            held.enter_context(_shown(bucket, run, waiting, elsewhere))
        yield


@contextmanager
def alone(store: Store | Path) -> Iterator[None]:
    """Have a store to oneself. Raises BoomspecError, naming the runs, where others work with it."""
    root, bucket = _parts(store)
    if bucket is not None:
        root.mkdir(parents=True, exist_ok=True)
    handle = os.open(root / IN_USE, os.O_RDWR | os.O_CREAT, 0o666)
    address = root if bucket is None else bucket.url
    try:
        if not lock(handle, root / IN_USE):
            raise _busy(address, [folder.name for folder in sorted((root / "runs").glob("*")) if is_running(folder)])
        with ExitStack() as held:
            if bucket is not None:
                held.enter_context(_alone_at_url(bucket))
            yield
    finally:
        os.close(handle)


def running_elsewhere(store: Store) -> frozenset[str]:
    """The folders' names of the runs that somebody works on, where the store is at a URL, as far as clocks agree."""
    if store.bucket is None:
        return frozenset()
    from boomspec.store.leases import living

    return frozenset(str(said["run"]) for said in living(store.bucket, IN_USE).values() if said.get("run"))


def is_running(run: Path) -> bool:
    """Whether a living process runs the graph of this run's folder."""
    try:
        handle = _open(run / RUNNING)
    except OSError:
        return False
    try:
        return not lock(handle, run / RUNNING)
    finally:
        os.close(handle)


@contextmanager
def _shown(
    bucket: Bucket, run: Path | None, waiting: Callable[[], None], elsewhere: Callable[[str], None]
) -> Iterator[None]:
    """Show that one works with a store at a URL; who may only read there cannot, and hinders nobody."""
    from boomspec.store import leases
    from boomspec.store.permissions import DeniedError

    name = f"{IN_USE}/{token_hex(8)}"
    about = {"run": run.name, "folder": str(run)} if run is not None else {"run": ""}
    with ExitStack() as held:
        try:
            held.enter_context(leases.shown(bucket, name, expires=leases.EXPIRES, **about))
        except DeniedError:
            yield
            return
        if run is not None:
            _await_turn(bucket, name, run, elsewhere)
        told = False
        while any(_cleans(said) for said in leases.living(bucket, IN_USE, now=bucket.entry(name).modified).values()):
            if not told:
                told = True
                waiting()
            time.sleep(_POLL_SECONDS)
        yield


def _await_turn(bucket: Bucket, own: str, run: Path, tell: Callable[[str], None]) -> None:
    """Return when no other machine works on the run, as far as its leases say; raise BoomspecError where one does.

    A lease that is not renewed is that of a driver which was killed, and is waited out. Of two that start at once
    both see each other: the one of the greater name gives way, and the other one sees it go.
    """
    from boomspec.store import leases

    seen: dict[str, tuple[dict[str, Any], float]] = {}  # as it was when it was first seen, and when that was
    began, at_store = time.monotonic(), bucket.entry(own).modified
    while True:
        moment = time.monotonic()
        found = leases.living(bucket, IN_USE, now=at_store + moment - began, expires=leases.EXPIRES)
        others = {name: said for name, said in found.items() if name != own and _is_elsewhere(said, run)}
        if not others:
            return
        if not seen:
            who = _who(next(iter(others.values())))
            tell(
                f"{run.name} was at work on {who} a moment ago; "
                f"looking whether it still is, for up to {leases.EXPIRES:.0f} seconds"
            )
        for name, said in others.items():
            before, since = seen.setdefault(name, (said, moment))
            stays = name < own or said.get("renewals", 0) > _SETTLED or moment - since > 0.75 * leases.EXPIRES
            if said != before and stays:
                raise BoomspecError(
                    f"{run.name} is at work on {_who(said)}, for the store {bucket.url}: nothing was changed",
                    hint=f"boomspec runs {run.name} --store {bucket.url} shows how far it is, and boomspec logs JOB "
                    "--follow what a submitted job prints; to run it here, stop it there first",
                )
        time.sleep(_POLL_SECONDS)


def _is_elsewhere(said: dict[str, Any], run: Path) -> bool:
    """Whether this is somebody who works on the run in another folder; in one folder several may."""
    here = said.get("host") == socket.gethostname() and said.get("folder") == str(run)
    return said.get("run") == run.name and not here


def _who(said: dict[str, Any]) -> str:
    return f"{said.get('host', '?')} (process {said.get('pid', '?')})"


@contextmanager
def _alone_at_url(bucket: Bucket) -> Iterator[None]:
    from boomspec.store.leases import living, shown

    name = f"{IN_USE}/{token_hex(8)}"
    with shown(bucket, name, run="", doing=_CLEANS):
        # By the clock of the store: both were written there.
        others = living(bucket, IN_USE, now=bucket.entry(name).modified)
        others.pop(name, None)
        if others:
            raise _busy(bucket.url, sorted({str(said["run"]) for said in others.values() if said.get("run")}))
        yield


def _cleans(said: dict[str, Any]) -> bool:
    return said.get("doing") == _CLEANS


def _busy(address: Path | str, runs: list[str]) -> BoomspecError:
    who = f"run {', '.join(runs)}" if runs else "another boomspec process"
    return BoomspecError(
        f"store {address} is in use by {who}: nothing was changed", hint="wait for its end, or stop it"
    )


def _parts(store: Store | Path) -> tuple[Path, Bucket | None]:
    return (store.root, store.bucket) if isinstance(store, Store) else (store, None)


@contextmanager
def _held(path: Path | None, waiting: Callable[[], None]) -> Iterator[None]:
    handle = None if path is None else _made(path)
    try:
        if path is not None and handle is not None and not lock(handle, path, shared=True):
            waiting()
            lock(handle, path, shared=True, wait=True)
        yield
    finally:
        if handle is not None:
            os.close(handle)


def _made(path: Path) -> int | None:
    """The lock file, made where it does not exist; None where it cannot be made."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o666))
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOENT):
            raise
    try:
        return _open(path)
    except OSError:
        return None


def _open(path: Path) -> int:
    """Open for reading and, where permitted, writing: over NFS an exclusive lock needs a writer."""
    try:
        return os.open(path, os.O_RDWR)
    except OSError:
        return os.open(path, os.O_RDONLY)
