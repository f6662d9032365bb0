"""Who works with a store right now: locks of living processes. A dead process holds none, however it died.

    <store>/.in-use             shared by everything that works with the store; `gc` alone holds it exclusively
    <store>/runs/<run>/.running  shared by the processes that run this graph

Neither says anything by being there: only a lock that is held counts. A store at a URL has no locks: there everybody
writes an object of his own below <url>/.in-use/ again and again (`boomspec/store/leases.py`), and who finds another
one's young does not clean up. Of two who come at once each has written before he looks.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Any

from boomspec.errors import BoomspecError
from boomspec.store import Store

if TYPE_CHECKING:
    from boomspec.store.bucket import Bucket

IN_USE, RUNNING = ".in-use", ".running"
_CLEANS = "cleans"  # what `gc` says of itself in its object
_POLL_SECONDS = 2.0


@contextmanager
def using(
    store: Store | Path, *, run: Path | None = None, waiting: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """Work with a store: nothing of it is cleaned away meanwhile. `run`: the folder of the run that this is.

    Where it is being cleaned up just now, calls `waiting` and waits for the end of that. A store that cannot be
    written is only read, without a lock where there never was one.
    """
    root, bucket = _parts(store)
    with ExitStack() as held:
        held.enter_context(_held(root / IN_USE, waiting))
        held.enter_context(_held(run / RUNNING if run is not None else None, lambda: None))
        if bucket is not None:
            held.enter_context(_shown(bucket, run.name if run is not None else "", waiting))
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
        if not _lock(handle, fcntl.LOCK_EX):
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
        return not _lock(handle, fcntl.LOCK_EX)
    finally:
        os.close(handle)


@contextmanager
def _shown(bucket: Bucket, run: str, waiting: Callable[[], None]) -> Iterator[None]:
    """Show that one works with a store at a URL; who may only read there cannot, and hinders nobody."""
    from boomspec.store.leases import living, shown
    from boomspec.store.patience import DeniedError

    name = f"{IN_USE}/{token_hex(8)}"
    with ExitStack() as held:
        try:
            held.enter_context(shown(bucket, name, run=run))
        except DeniedError:
            yield
            return
        told = False
        while any(_cleans(said) for said in living(bucket, IN_USE, now=bucket.entry(name).modified).values()):
            if not told:
                told = True
                waiting()
            time.sleep(_POLL_SECONDS)
        yield


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
        if handle is not None and not _lock(handle, fcntl.LOCK_SH):
            waiting()
            fcntl.flock(handle, fcntl.LOCK_SH)
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


def _lock(handle: int, kind: int) -> bool:
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
