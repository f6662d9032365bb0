"""Watch the head of a cluster, and end the run in good order when it is gone.

Without a head nothing new can start, and after a minute Ray ends every process that was connected to it, without a
message. So a thread checks whether the head still takes connections, and the run ends before Ray's minute is over.
Nothing is lost: artifacts and checkpoints are in the store.
"""

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
        self._noted = False  # that it does not answer

    @property
    def answers(self) -> bool:
        return self._silent_since is None

    def notes(self) -> Iterator[str]:
        """Notes for people since the last call. Raises HeadLostError when it has not answered for too long."""
        if (error := self._lost()) is not None:
            raise error
        if self.answers == self._noted:
            self._noted = not self._noted
            yield f"the head of the cluster ({self._address}) {'does not answer' if self._noted else 'answers again'}"

    @contextmanager
    def watched(self, end: Callable[[int], None] = os._exit) -> Iterator[None]:
        """Watch it while the context lasts. `end`: how the process ends where it hangs in a call to the head."""
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(self._every):
                try:
                    socket.create_connection(self._place, timeout=_ANSWER_SECONDS).close()
                    self._silent_since = None
                except OSError:
                    self._silent_since = self._silent_since or time.monotonic()
                    if (error := self._lost(_LAST_SECONDS)) is not None:
                        print_error(error)
                        end(EXIT_RUN_FAILED)

        threading.Thread(target=watch, name="head", daemon=True).start()
        try:
            yield
        finally:
            ended.set()

    def _lost(self, more: float = 0.0) -> HeadLostError | None:
        """The error where it has not answered for its time and so many seconds more."""
        since = self._silent_since
        silent = 0.0 if since is None else time.monotonic() - since
        if since is None or silent < self._seconds + more:
            return None
        message = f"the head of the cluster ({self._address}) has not answered for {silent:.0f} seconds: it is lost"
        hint = "start the cluster again; the same command goes on from the last checkpoints"
        return HeadLostError(message, hint=hint)
