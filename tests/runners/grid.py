"""A Ray cluster with a token and a job server on this machine, for as long as a test needs it."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.runners.ports import free_ports


@dataclass(frozen=True)
class Grid:
    """`environment` is that of somebody who has the token."""

    address: str
    gcs: str
    token: str
    folder: Path
    environment: dict[str, str]

    def boomspec(self, *arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a command of boomspec; a variable that is "" is taken away."""
        environment = {name: value for name, value in {**self.environment, **variables}.items() if value}
        return subprocess.run(
            [sys.executable, "-m", "boomspec", *map(str, arguments)],
            env=environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=240,
        )


@contextmanager
def grid(folder: Path) -> Iterator[Grid]:
    """A head and one more node, with a CPU each. `folder` must have a short path: Ray's sockets lie in it."""
    gcs, dashboard, agent = free_ports(3)
    token = secrets.token_hex(32)
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = clean | {"HOME": str(folder), "RAY_AUTH_TOKEN": token, "RAY_USAGE_STATS_ENABLED": "0"}
    head = ["--head", f"--port={gcs}", f"--temp-dir={folder / 'ray'}"]
    # The agent takes jobs; another Ray on this machine may have its default port.
    head += ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"]
    with ExitStack() as nodes:
        for options in (head, [f"--address=127.0.0.1:{gcs}"]):
            nodes.enter_context(_node(options, environment | {"RAY_AUTH_MODE": "token"}))
        yield Grid(f"http://127.0.0.1:{dashboard}", f"127.0.0.1:{gcs}", token, folder, environment)


@contextmanager
def _node(options: list[str], environment: dict[str, str]) -> Iterator[None]:
    common = ["--block", "--num-cpus=1", "--object-store-memory=100000000"]
    process = subprocess.Popen(
        [Path(sys.executable).with_name("ray"), "start", *options, *common],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        assert any("will now block" in line for line in process.stdout)
        yield
    finally:
        process.terminate()
        process.communicate(timeout=60)


def own_address() -> str:
    """An address of this machine that others can reach."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # nothing is sent
        return str(probe.getsockname()[0])
