"""Watch the head of a cluster, and end the run in good order when it is gone.

Without a head nothing new can start, and after a minute Ray ends every process that was connected to it, without a
message. So a thread checks whether the head still takes connections, and the run ends before Ray's minute is over.
Nothing is lost: artifacts and checkpoints are in the store.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from boomspec.core.errors import EXIT_RUN_FAILED, BoomspecError, print_error

# How long Ray waits for a head; clusters that can replace one (KubeRay's fault tolerance) set more.
_RAY_SETTING, _RAY_SECONDS = "RAY_gcs_rpc_server_reconnect_timeout_s", 60.0
_BEFORE_SECONDS = 15.0  # to say it and to end in good order
_LAST_SECONDS = 5.0  # of these, for what cannot end because it waits for the head
_EVERY_SECONDS = 2.0
_ANSWER_SECONDS = 5.0


class HeadLostError(BoomspecError):
    """The head of the cluster is gone, and with it the run."""

    exit_code = EXIT_RUN_FAILED


class RayHead:
    """Whether the head at `address` ("host:port") answers. `seconds`: how long it may not before it counts as lost."""

    def __init__(self, address: str, *, seconds: float | None = None, every: float = _EVERY_SECONDS) -> None:
        host, _, port = address.rpartition(":")
        self._place, self._address = (host.strip("[]"), int(port)), address
        ray_waits = float(os.environ.get(_RAY_SETTING, _RAY_SECONDS))
        self._seconds = max(ray_waits - _BEFORE_SECONDS, every) if seconds is None else seconds
        self._every = every
        self._silent_since: float | None = None
        self._told = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="head", daemon=True)

    @property
    def answers(self) -> bool:
        return self._silent_since is None

    def notes(self) -> Iterator[str]:
        """Notes for people since the last call. Raises HeadLostError when it has not answered for too long."""
        since = self._silent_since
        silent = 0.0 if since is None else time.monotonic() - since
        if since is not None and silent >= self._seconds:
            raise self._error(silent)
        if (since is not None) != self._told:
            self._told = since is not None
            yield f"the head of the cluster ({self._address}) {'does not answer' if self._told else 'answers again'}"

    @contextmanager
    def watched(self, end: Callable[[int], None] = os._exit) -> Iterator[None]:
        """Watch it while the context lasts. `end`: how the process ends where it hangs in a call to the head."""
        self._end = end
        self._thread.start()
        try:
            yield
        finally:
            self._ended.set()

    def _watch(self) -> None:
        while not self._ended.wait(self._every):
            if self._reachable():
                self._silent_since = None
                continue
            if self._silent_since is None:
                self._silent_since = time.monotonic()
            silent = time.monotonic() - self._silent_since
            if silent >= self._seconds + _LAST_SECONDS:
                print_error(self._error(silent))
                self._end(EXIT_RUN_FAILED)

    def _reachable(self) -> bool:
        try:
            socket.create_connection(self._place, timeout=_ANSWER_SECONDS).close()
        except OSError:
            return False
        return True

    def _error(self, silent: float) -> HeadLostError:
        return HeadLostError(
            f"the head of the cluster ({self._address}) has not answered for {silent:.0f} seconds: it is lost",
            hint="start the cluster again; the same command goes on from the last checkpoints",
        )
