"""How an artifact came to be: versions, git commit, hardware, times. Never environment variables."""

from __future__ import annotations

import os
import platform
import socket
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from boomspec.costs.machine import cpu_model, memory_bytes
from boomspec.graph import Execution
from boomspec.locks.packages import installed, python


def provenance(*, started: float, finished: float, execution: Execution, commit: str | None) -> dict[str, Any]:
    """What goes into an artifact's record beside its identity. Times are seconds since 1970."""
    return {
        "started": _time(started),
        "finished": _time(finished),
        "seconds": round(finished - started, 3),
        "execution": {"cpus": execution.cpus, "gpus": execution.gpus, "options": execution.options},
        "commit": commit,
        "python": python(),
        "packages": installed(),
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "hardware": {
            "cpu": cpu_model(),
            "cpus": os.cpu_count(),
            "memory_bytes": memory_bytes(),
            "gpus": _gpu_names(),
        },
    }


def git_commit(folder: Path) -> str | None:
    """The commit that is checked out in `folder`, with "-dirty" behind it where files differ; None outside git."""
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        # Without the optional locks git would write its index.
        environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True, env=environment)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _gpu_names() -> list[str]:
    torch = sys.modules.get("torch")  # a task that did not import it used no GPU
    if torch is None or not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
