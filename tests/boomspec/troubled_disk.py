"""Disks as they are on clusters: files that cannot be read just now, and NFS as Linux has it."""

import errno
import fcntl
import os
import stat
from pathlib import Path
from typing import Any

import pytest


def failing(monkeypatch: pytest.MonkeyPatch, path: Path, reason: int, *, statted: bool = True) -> None:
    """Whoever opens this file, or looks at it where `statted`, gets that error."""

    def refusing(method: Any) -> Any:
        def called(self: Path, *arguments: Any, **options: Any) -> Any:
            if self == path:
                raise OSError(reason, os.strerror(reason), str(self))
            return method(self, *arguments, **options)

        return called

    for name in ("open", "stat") if statted else ("open",):
        monkeypatch.setattr(Path, name, refusing(getattr(Path, name)))


def another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on locks are those that NFS gives to another machine than the processes that were started before.

    Its client knows locks of folders on its own machine only, and gives an exclusive one of a file to writers only.
    """
    flock = fcntl.flock

    def locked(handle: int, operation: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            return
        reading = fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
        if reading and operation & fcntl.LOCK_EX:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        flock(handle, operation)

    monkeypatch.setattr(fcntl, "flock", locked)
