"""Leases at a URL, which has no locks: objects that their holders rewrite every few seconds.

    <url>/<kind>/.<task id>.lease   who works on a task
    <url>/.in-use/<token>           who uses the store, which run it executes, and whether it cleans up

A lease that has not changed for a while, by the clock of whoever waits for it, has expired: its holder died or is cut
off. Leases make nothing safe, since concurrent writes are safe anyway (`remote.py`); they save doing work twice. A run
may execute on one machine only: two that share no folder would overwrite each other's events.
"""

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from boomspec.core.errors import BoomspecError
from boomspec.store.bucket import Bucket
from boomspec.store.lock import IN_USE, Waiting, in_use_error, nothing
from boomspec.store.record import Report, parsed_json
from boomspec.store.retry import DeniedError

EXPIRES = 90.0  # seconds without a heartbeat
_HEARTBEATS = 4  # within that time
_POLL = 1 / 30  # of that time: how often to look at a lease that we wait for
_IN_USE_POLL_SECONDS = 2.0
_SETTLED = 8  # heartbeats after which a holder no longer looks for others
_CLEANS = "cleans"  # what `gc` puts into its lease


@contextmanager
def held(bucket: Bucket, name: str, *, owner: str = "", waiting: Waiting = nothing) -> Iterator[None]:
    """Hold the lease `name`. Where another process holds it, call `waiting` once and wait for its end or expiry.

    A lease of the same `owner`, or of a dead process of this machine, is taken at once.
    """
    lease = _Lease(bucket, name, owner=owner)
    lease.take(waiting)
    with lease.heartbeat():
        yield


@contextmanager
def hold_own_lease(bucket: Bucket, name: str, **about: str) -> Iterator[None]:
    """Hold a lease under a name that nobody else has, for others to see."""
    lease = _Lease(bucket, name, **about)
    lease.write()
    with lease.heartbeat():
        yield


def living(bucket: Bucket, *, now: float | None = None) -> dict[str, dict[str, Any]]:
    """The leases, by name, of processes that use the store now; `now` by its clock, else by this machine's."""
    now = time.time() if now is None else now
    young = [name for name, entry in bucket.entries(IN_USE).items() if now - entry.modified < EXPIRES]
    found = {name: _parsed(data) for name, data in bucket.read_all(young).items()}
    return {name: lease for name, lease in found.items() if not _is_dead(lease)}


@contextmanager
def in_use(bucket: Bucket, run: Path | None, waiting: Waiting, elsewhere: Report) -> Iterator[None]:
    """`Store.using` for a store at a URL. Who may only read there needs no lease."""
    name, waiting = f"{IN_USE}/{secrets.token_hex(8)}", cache(waiting)
    about = {"run": run.name, "folder": str(run)} if run is not None else {"run": ""}
    lease = _Lease(bucket, name, **about)
    try:
        lease.write()
    except DeniedError:
        yield
        return
    with lease.heartbeat():
        if run is not None:
            _await_run(bucket, name, run, elsewhere)
        while _CLEANS in [lease.get("doing") for lease in living(bucket, now=bucket.entry(name).modified).values()]:
            waiting()
            time.sleep(_IN_USE_POLL_SECONDS)
        yield


@contextmanager
def alone(bucket: Bucket) -> Iterator[None]:
    """`Store.alone` for a store at a URL. Of two that come at once, each has written its lease before it looks."""
    name = f"{IN_USE}/{secrets.token_hex(8)}"
    with hold_own_lease(bucket, name, run="", doing=_CLEANS):
        others = living(bucket, now=bucket.entry(name).modified)  # both times are by the store's clock
        others.pop(name, None)
        if others:
            raise in_use_error(bucket.url, {str(other["run"]) for other in others.values() if other.get("run")})
        yield


def others_work(bucket: Bucket) -> bool:
    """Whether anybody but `gc` uses the store."""
    return any(lease.get("doing") != _CLEANS for lease in living(bucket).values())


def _await_run(bucket: Bucket, own: str, run: Path, report: Report) -> None:
    """Return once no other machine executes the run; raise BoomspecError where one does.

    A lease without heartbeats belongs to a driver that was killed, and is waited out. Of two drivers that start at
    once, both see each other: the one of the greater name gives up, and the other one sees its lease end.
    """
    first: dict[str, tuple[dict[str, Any], float]] = {}  # each lease as first seen, and when
    began, began_at_store = time.monotonic(), bucket.entry(own).modified
    here = (socket.gethostname(), str(run))  # in one folder several may work together
    while True:
        moment = time.monotonic()
        found = living(bucket, now=began_at_store + moment - began).items()
        others = {name: lease for name, lease in found if name != own and lease.get("run") == run.name}
        others = {name: lease for name, lease in others.items() if (lease.get("host"), lease.get("folder")) != here}
        if not others:
            return
        if not first:
            report(
                f"{run.name} was at work on {_who(next(iter(others.values())))} a moment ago; "
                f"looking whether it still is, for up to {EXPIRES:.0f} seconds"
            )
        for name, lease in others.items():
            before, since = first.setdefault(name, (lease, moment))
            stays = name < own or lease.get("renewals", 0) > _SETTLED or moment - since > 0.75 * EXPIRES
            if lease != before and stays:
                raise BoomspecError(
                    f"{run.name} is at work on {_who(lease)}, for the store {bucket.url}: nothing was changed",
                    hint=f"boomspec runs {run.name} --store {bucket.url} shows how far it is, and boomspec logs JOB "
                    "--follow what a submitted job prints; to run it here, stop it there first",
                )
        time.sleep(_IN_USE_POLL_SECONDS)


def _who(lease: dict[str, Any]) -> str:
    return f"{lease.get('host', '?')} (process {lease.get('pid', '?')})"


class _Lease:
    def __init__(self, bucket: Bucket, name: str, *, owner: str = "", **about: str) -> None:
        self._bucket, self._name, self._owner = bucket, name, owner
        self._token = secrets.token_hex(8)
        self._content = {"token": self._token, "owner": owner, **_this_process(), **about}
        self._renewals = 0

    def take(self, waiting: Waiting) -> None:
        seen, since, waiting = None, time.monotonic(), cache(waiting)
        while not self._bucket.write(self._name, self._text(), create=True):
            if (other := self._read()) is None:
                continue  # it has ended meanwhile
            if other.get("token") == self._token:
                return
            if other != seen:
                seen, since = other, time.monotonic()
            same_owner = bool(self._owner) and other.get("owner") == self._owner
            if same_owner or _is_dead(other) or time.monotonic() - since >= EXPIRES:
                self.write()
                time.sleep(_POLL * EXPIRES / 10)  # of two that take it at once the last one has it
            else:
                waiting()
                time.sleep(_POLL * EXPIRES)

    def write(self) -> None:
        self._renewals += 1
        self._bucket.write(self._name, self._text())

    @contextmanager
    def heartbeat(self) -> Iterator[None]:
        """Rewrite the lease in a thread until another process takes it; delete it at the end."""
        ended, self._bucket = threading.Event(), self._bucket.without_retries()

        def renew() -> None:
            while not ended.wait(EXPIRES / _HEARTBEATS):
                with suppress(BoomspecError):  # the next one may succeed; whoever uses the store reports the problem
                    if (found := self._read()) is not None and found.get("token") != self._token:
                        return
                    self.write()

        thread = threading.Thread(target=renew, name="lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join(timeout=EXPIRES)  # a heartbeat under way would restore what is deleted
            with suppress(BoomspecError):  # it expires by itself
                if (found := self._read()) is not None and found.get("token") == self._token:
                    self._bucket.delete([self._name])

    def _text(self) -> bytes:
        return json.dumps({**self._content, "renewals": self._renewals}).encode()

    def _read(self) -> dict[str, Any] | None:
        try:
            return _parsed(self._bucket.read(self._name))
        except FileNotFoundError:
            return None


def _this_process() -> dict[str, str]:
    pid = os.getpid()
    return {"host": socket.gethostname(), "machine": _machine(), "pid": str(pid), "since": _started(pid)}


def _machine() -> str:
    """The boot and process namespace of process numbers; "" if unknown: then a lease's age alone says who is dead."""
    try:
        if Path("/proc/self").readlink().name != str(os.getpid()):
            return ""
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _started(pid: int) -> str:
    """When a process was started, in ticks, since process numbers are reused; "" where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _is_dead(lease: dict[str, Any]) -> bool:
    """Whether the holder is known to be dead: a process of this machine that no longer exists."""
    machine, pid = lease.get("machine"), str(lease.get("pid", ""))
    # The host name too: machines started from one snapshot have the same boot id.
    here = bool(machine) and machine == _machine() and lease.get("host") == socket.gethostname()
    return here and pid.isdigit() and _started(int(pid)) != lease.get("since")


def _parsed(data: bytes) -> dict[str, Any]:
    lease = parsed_json(data)
    return lease if isinstance(lease, dict) else {}
