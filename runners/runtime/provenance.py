"""How an artifact came to be: versions, git commit, hardware, times. Never environment variables."""

import os
import platform
import socket
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from boomspec.core.execution import Execution
from boomspec.core.machine import cpu_model, installed, memory_bytes

_GIT_PLACES = {"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_OBJECT_DIRECTORY", "GIT_PREFIX"}


def provenance(*, started: float, finished: float, execution: Execution, commit: str | None) -> dict[str, Any]:
    """What goes into an artifact's record beside its identity. Times are seconds since 1970."""
    begun, ended = (datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds") for at in (started, finished))
    torch = sys.modules.get("torch")  # a task that did not import it used no GPU
    gpus = torch.cuda.device_count() if torch is not None and torch.cuda.is_available() else 0
    return {
        "started": begun,
        "finished": ended,
        "seconds": round(finished - started, 3),
        "execution": {"cpus": execution.cpus, "gpus": execution.gpus, "options": execution.options()},
        "commit": commit,
        "python": platform.python_version(),
        "packages": installed(),
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "hardware": {
            "cpu": cpu_model(),
            "cpus": os.cpu_count(),
            "memory_bytes": memory_bytes(),
            "gpus": [torch.cuda.get_device_name(index) for index in range(gpus)] if torch else [],
        },
    }


def git_commit(*folders: Path) -> str | None:
    """The commit whose code lies in `folders`, with "-dirty" after it where a file differs; None where there is none.

    The repository must have the packages' own files: a package may be installed inside of another repository.
    """
    found = {_commit(folder) for folder in folders}
    return found.pop() if len(found) == 1 else None


def _commit(folder: Path) -> str | None:
    has = _git(folder, "ls-files", "-z", "--", ".")
    if has is None or "__init__.py" not in (tracked := set(has.split("\0"))):
        return None
    commit = (_git(folder, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*") or "").strip()
    modules = {path.relative_to(folder).as_posix() for path in folder.rglob("*.py")}
    if commit and not commit.endswith("-dirty") and not modules <= tracked:
        commit += "-dirty"  # new modules, of which git's word knows nothing
    return commit or None


def _git(folder: Path, *arguments: str) -> str | None:
    # Within a hook the environment names another repository. Without the optional locks git would write its index.
    environment = {name: value for name, value in os.environ.items() if name not in _GIT_PLACES}
    environment["GIT_OPTIONAL_LOCKS"] = "0"
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, timeout=10, check=True, env=environment)
    except (OSError, subprocess.SubprocessError):
        return None
    return os.fsdecode(done.stdout)
