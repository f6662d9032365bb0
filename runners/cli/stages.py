"""Keep one Ray cluster alive across the successive graphs of a spec with a search.

`boomspec run` compiles a spec up to its searches, and again when they have found something. It hands all these graphs
to one process (`--stages`), so Ray starts once. Standard input is then a socket. A line that comes is JSON: the next
command line, or null for an interrupt. A line that goes is the exit code of a graph. The last one has no --stages.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from runners.runtime.interrupt import Interrupt

if TYPE_CHECKING:
    from runners.cluster.head_watch import RayHead

_POLL_SECONDS = 0.2


class Ray:
    """The cluster of this process. It stays connected until the first `connected` that is not to `stay`."""

    def __init__(self) -> None:
        self._cluster = ExitStack()
        self._heads: list[RayHead | None] = []  # the one of the cluster, once it is connected

    def __enter__(self) -> Ray:
        return self

    def __exit__(self, *_: object) -> None:
        self._cluster.close()

    @contextmanager
    def connected(self, options: argparse.Namespace, *, stay: bool) -> Iterator[RayHead | None]:
        # Not at the top: Ray takes half a second to import, reads its settings then, and often nothing is to run.
        from runners.cluster.ray_cluster import cluster

        if not self._heads:
            made = cluster(options.address, cpus=options.cpus, gpus=options.gpus, insecure=options.insecure)
            self._heads.append(self._cluster.enter_context(made))
        try:
            yield self._heads[0]
        finally:
            if not stay:
                self._heads.clear()
                self._cluster.close()


class Stages:
    """The other end of the socket. When it is closed, the run that is at work is interrupted."""

    def __init__(self, interrupt: Interrupt) -> None:
        self._interrupt = interrupt
        self._socket = socket.socket(fileno=os.dup(0))
        with Path(os.devnull).open("rb") as nothing:  # else Ray's processes would keep the socket open
            os.dup2(nothing.fileno(), 0)
        self._lines: queue.SimpleQueue[list[str]] = queue.SimpleQueue()
        threading.Thread(target=self._read, name="stages", daemon=True).start()

    def following(self, code: int) -> list[str] | None:
        """Report the exit code of a graph. Returns the next command line; None after an interrupt."""
        with suppress(OSError):
            self._socket.sendall(f"{code}\n".encode())
        while not self._interrupt.requested:
            with suppress(queue.Empty):
                return self._lines.get(timeout=_POLL_SECONDS)
        return None

    def _read(self) -> None:
        with suppress(OSError), self._socket.makefile("r", encoding="utf-8") as lines:
            for line in lines:
                if (command := json.loads(line)) is None:
                    break
                self._lines.put(command)
        self._interrupt.requested = True
