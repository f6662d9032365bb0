"""Who is at work on something of a store that has no locks: objects that their holders write anew again and again.

A lease whose object has not changed for a while, by the clock of who waits for it, is its holder's no longer: it died,
or it is cut off. Holding one makes nothing safe (what two write at once is safe anyway, see `remote.py`); it saves the
work of doing a thing twice.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from boomspec.core.errors import BoomspecError
from boomspec.store.bucket import Bucket

EXPIRES = 90.0  # seconds without a change, after which a lease is its holder's no longer
_RENEWALS = 4  # within that time
_POLL = 1 / 30  # of that time: how often who waits looks


@contextmanager
def held(
    bucket: Bucket,
    name: str,
    *,
    owner: str = "",
    waiting: Callable[[], None] = lambda: None,
    expires: float = EXPIRES,
) -> Iterator[None]:
    """Hold the lease `name`, having waited for its end, or the end of its holder, and called `waiting` once if so.

    A lease of the same `owner`, and one whose process on this machine is dead, is taken at once.
    """
    lease = _Lease(bucket, name, owner)
    lease.take(waiting, expires)
    with _renewed(lease, expires):
        yield


@contextmanager
def shown(bucket: Bucket, name: str, *, expires: float = EXPIRES, **said: str) -> Iterator[None]:
    """Show by an object of one's own, whose `name` nobody else has, that one is at work."""
    lease = _Lease(bucket, name, "", **said)
    lease.write()
    with _renewed(lease, expires):
        yield


def living(bucket: Bucket, prefix: str, *, now: float | None = None, expires: float = EXPIRES) -> dict[str, Any]:
    """What the holders of the leases in a folder say that are at work, by name.

    now: by the clock of the store, where that is known; else this machine's clock has to do.
    """
    now = time.time() if now is None else now
    young = [name for name, entry in bucket.entries(prefix).items() if now - entry.modified < expires]
    said = {name: _parsed(data) for name, data in bucket.read_all(young).items()}
    return {name: data for name, data in said.items() if not _is_dead(data)}


class _Lease:
    """One lease, as its holder has it."""

    def __init__(self, bucket: Bucket, name: str, owner: str, **said: str) -> None:
        self._bucket, self._name, self._owner = bucket, name, owner
        self._said = {"token": secrets.token_hex(8), "owner": owner, **_this_process(), **said}
        self._renewals = 0

    def take(self, waiting: Callable[[], None], expires: float) -> None:
        seen, since, told = None, time.monotonic(), False
        while not self._bucket.write(self._name, self._text(), create=True):
            found = self._read()
            if found is None:
                continue  # it has ended meanwhile
            if found.get("token") == self._said["token"]:
                return
            if found != seen:
                seen, since = found, time.monotonic()
            same = bool(self._owner) and found.get("owner") == self._owner
            if same or _is_dead(found) or time.monotonic() - since >= expires:
                self.write()
                time.sleep(_POLL * expires / 10)  # of two who take it at once the last one has it
                continue
            if not told:
                told = True
                waiting()
            time.sleep(_POLL * expires)

    def hurried(self) -> _Lease:
        """The same lease, for which nothing is tried twice."""
        same = _Lease(self._bucket.hurried(), self._name, self._owner)
        same._said = self._said
        return same

    def write(self) -> None:
        self._renewals += 1
        self._bucket.write(self._name, self._text())

    def renew(self) -> bool:
        """Write it anew. False where another one has taken it."""
        found = self._read()
        if found is not None and found.get("token") != self._said["token"]:
            return False
        self.write()
        return True

    def end(self) -> None:
        """Where it is still one's own, delete it."""
        found = self._read()
        if found is not None and found.get("token") == self._said["token"]:
            self._bucket.delete([self._name])

    def _text(self) -> bytes:
        return json.dumps({**self._said, "renewals": self._renewals}).encode()

    def _read(self) -> dict[str, Any] | None:
        try:
            return _parsed(self._bucket.read(self._name))
        except FileNotFoundError:
            return None


@contextmanager
def _renewed(lease: _Lease, expires: float) -> Iterator[None]:
    ended, hurried = threading.Event(), lease.hurried()

    def renew() -> None:
        while not ended.wait(expires / _RENEWALS):
            with suppress(BoomspecError):  # the next time, perhaps; who works with the store says what is wrong
                if not hurried.renew():
                    return

    thread = threading.Thread(target=renew, name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=expires)  # a renewal under way would bring back what is deleted
        with suppress(BoomspecError):  # it expires by itself
            hurried.end()


def _this_process() -> dict[str, str]:
    return {"host": socket.gethostname(), "machine": _machine(), "pid": str(os.getpid()), "since": _since(os.getpid())}


def _machine() -> str:
    """What tells process numbers apart: the boot of a machine, and the namespace that they are counted in.

    "" where that is not known, or where /proc counts in another namespace: then only a lease's age says who is dead.
    """
    try:
        if Path("/proc/self").readlink().name != str(os.getpid()):
            return ""
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _since(pid: int) -> str:
    """When a process was started, in ticks; numbers of processes are used again. "" where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _is_dead(said: dict[str, Any]) -> bool:
    """Whether a holder is known to be dead: a process of this machine that is no longer there."""
    machine, pid = said.get("machine"), str(said.get("pid", ""))
    # Machines that were started from one snapshot have the same boot.
    same = bool(machine) and machine == _machine() and said.get("host") == socket.gethostname()
    return same and pid.isdigit() and _since(int(pid)) != said.get("since")


def _parsed(data: bytes) -> dict[str, Any]:
    try:
        said = json.loads(data)
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}
