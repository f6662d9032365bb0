"""Capture what a task prints: everything on file descriptors 1 and 2 goes to its log, without secrets.

Libraries print credentials now and then, and a log lies in the store. So the output goes first into an
unnamed temporary file and from there, redacted line by line, into the log. (A pipe would be simpler, but
native code that fills a pipe while it holds the interpreter's lock would wait for its reader forever.)
"""

import faulthandler
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path

from boomspec.core.errors import redact

_EVERY_SECONDS = 0.3
_CHUNK = 1 << 20


@contextmanager
def captured(log: Path) -> Iterator[None]:
    """Append this process's output to `log`, within a third of a second: little is lost when the process is killed."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    with tempfile.TemporaryFile() as raw, log.open("ab", buffering=0) as file:
        done = threading.Event()
        copier = threading.Thread(target=_copy, args=(raw.fileno(), file.fileno(), done), daemon=True)
        os.dup2(raw.fileno(), 1)
        os.dup2(raw.fileno(), 2)
        # The trace of a crash must not wait for the copier. It names files and functions, no values.
        faulthandler.enable(file)
        copier.start()
        try:
            # Python's own streams need not be on those descriptors (under a test runner they are not).
            text = os.fdopen(raw.fileno(), "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)
            with text, redirect_stdout(text), redirect_stderr(text):
                yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, descriptor in enumerate(saved, start=1):
                os.dup2(descriptor, number)
                os.close(descriptor)
            faulthandler.enable(2)
            done.set()
            copier.join()


def _copy(source: int, target: int, done: threading.Event) -> None:
    """Copy whole lines from one descriptor to the other until `done`, then the rest."""
    offset, rest, last = 0, b"", False
    while not last:
        last = done.wait(_EVERY_SECONDS)
        while chunk := os.pread(source, _CHUNK, offset):
            offset += len(chunk)
            rest += chunk
            end = max(rest.rfind(b"\n"), rest.rfind(b"\r")) + 1  # progress bars end their lines with \r
            _write(target, rest[:end])
            rest = rest[end:]
    _write(target, rest)


def _write(target: int, data: bytes) -> None:
    if data:
        with suppress(OSError):  # a disk that is full takes no more, and the task may not need it to
            os.write(target, redact(data.decode("utf-8", errors="replace")).encode("utf-8"))
