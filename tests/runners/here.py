"""The command line inside of the test's own process: what starts a process there is a call here.

A command then needs no second of imports, and its tasks run on the cluster of the fixture `connected`, whose workers
have loaded everything. Real processes are in test_end_to_end.py, test_executor.py and test_stages.py.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from boomspec.commands.cli import main

Done = subprocess.CompletedProcess[str]


def boomspec(*arguments: object, folder: Path | None = None, together: bool = False, **variables: str) -> Done:
    """What a command of boomspec does that is typed in `folder`. `together`: errors are part of the output."""
    output = io.StringIO()
    errors = output if together else io.StringIO()
    with (
        contextlib.chdir(folder or "."),  # a run changes the folder
        patch.dict(os.environ, variables),
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(errors),
        _no_processes(),
    ):
        try:
            main([str(argument) for argument in arguments], prog_name="boomspec")
            code: Any = 0
        except SystemExit as end:
            code = end.code or 0
    return subprocess.CompletedProcess(arguments, code, output.getvalue(), "" if together else errors.getvalue())


@contextlib.contextmanager
def _no_processes() -> Iterator[None]:
    processes = SimpleNamespace(run=_run, Popen=_Called, PIPE=subprocess.PIPE)
    with contextlib.ExitStack() as patches:
        patches.enter_context(patch("os.execv", lambda _, command: sys.exit(_call(command))))
        for name in ("shared", "results"):
            patches.enter_context(patch(f"boomspec.commands.{name}.subprocess", processes))
        patches.enter_context(patch("boomspec.commands.run.Runners", _Runners))
        yield


def _call(command: list[str]) -> int:
    """Call the module that `python -P -m MODULE ...` would run."""
    python, _, _, module, *arguments = command
    assert python == sys.executable
    found = importlib.import_module("runners.cli.run" if module == "runners" else module)
    try:
        code: int = found.main(arguments)
    except SystemExit as end:
        return int(end.code or 0)
    return code


def _run(command: list[str], **options: Any) -> Done:
    if options.get("stdout") is None and not options.get("capture_output"):
        return subprocess.CompletedProcess(command, _call(command))
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        code = _call(command)
    return subprocess.CompletedProcess(command, code, output.getvalue(), errors.getvalue())


class _Called:
    """A process that has ended when it is made."""

    def __init__(self, command: list[str]) -> None:
        self._code = _call(command)

    def wait(self) -> int:
        return self._code


class _Runners:
    """All graphs of a spec in this process, where Ray runs already."""

    def run(self, command: list[str], *, reads_hub: bool, last: bool) -> int:
        return _call(command)

    def end(self) -> None:
        pass
