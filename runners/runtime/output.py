"""Capture what a task prints: everything on file descriptors 1 and 2 goes to its log, without secrets.

Libraries print credentials now and then, and a log lies in the store. So the output goes first into an
unnamed temporary file and from there, redacted line by line, into the log. (A pipe would be simpler, but
native code that fills a pipe while it holds the interpreter's lock would wait for its reader forever.)
"""

import faulthandler
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path

from boomspec.core.errors import redact
from runners.runtime.repeated import repeated

_EVERY_SECONDS = 0.3
_CHUNK = 1 << 20


@contextmanager
def captured(log: Path) -> Iterator[None]:
    """Append this process's output to `log`, within a third of a second: little is lost when the process is killed."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    with tempfile.TemporaryFile() as raw, log.open("ab", buffering=0) as file:
        copier = _Copier(raw.fileno(), file.fileno())
        os.dup2(raw.fileno(), 1)
        os.dup2(raw.fileno(), 2)
        # The trace of a crash must not wait for the copier. It names files and functions, no values.
        faulthandler.enable(file)
        try:
            # Python's own streams need not be on those descriptors (under a test runner they are not).
            text = os.fdopen(raw.fileno(), "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)
            with repeated(copier.copy, every=_EVERY_SECONDS), text, redirect_stdout(text), redirect_stderr(text):
                yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, descriptor in enumerate(saved, start=1):
                os.dup2(descriptor, number)
                os.close(descriptor)
            faulthandler.enable(2)
            copier.copy()
            copier.end()


class _Copier:
    """Copies lines from one descriptor to another."""

    def __init__(self, source: int, target: int) -> None:
        self._source, self._target = source, target
        self._offset, self._rest = 0, b""

    def copy(self) -> None:
        """Copy the whole lines that are there."""
        while chunk := os.pread(self._source, _CHUNK, self._offset):
            self._offset += len(chunk)
            self._rest += chunk
            end = max(self._rest.rfind(b"\n"), self._rest.rfind(b"\r")) + 1  # progress bars end their lines with \r
            self._write(self._rest[:end])
            self._rest = self._rest[end:]

    def end(self) -> None:
        """Copy the line that nothing ends."""
        self._write(self._rest)

    def _write(self, data: bytes) -> None:
        if data:
            with suppress(OSError):  # a disk that is full takes no more, and the task may not need it to
                os.write(self._target, redact(data.decode("utf-8", errors="replace")).encode("utf-8"))
