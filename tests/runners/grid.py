"""A Ray cluster with a token and a job server on this machine, for as long as a test needs it.

Its machines are raylets, each with its own processes: one of them, or all, can be lost in an instant.
"""

from __future__ import annotations

import itertools
import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.runners.corpora import wait_until
from tests.runners.ports import free_ports

MACHINE = "BOOMSPEC_TEST_MACHINE"  # in the environment of every process that a machine of a grid starts
_ATTEMPTS = 6  # at starting a machine: on a busy one a raylet gives up where its agents need more than 15 seconds
RAY = Path(sys.executable).with_name("ray")


@dataclass(frozen=True)
class Machine:
    """One raylet and all that it has started; the head has the cluster's own services and the jobs' drivers, too."""

    mark: str
    process: subprocess.Popen[bytes]
    output: Path

    def joined(self) -> bool:
        """Wait until it is part of its cluster, or has given up."""
        wait_until(lambda: "will now block" in self.output.read_text() or self.process.poll() is not None, seconds=240)
        return self.process.poll() is None

    @property
    def works(self) -> bool:
        """Whether its raylet is there, or on its way. `ray start` outlives one that ended in good order."""
        if self.process.poll() is not None:
            return False
        there = "will now block" in self.output.read_text()
        return not there or any("/raylet/raylet " in command for command in self.processes().values())

    def processes(self) -> dict[int, str]:
        """The command lines of its living processes, by process id."""
        return marked(MACHINE, self.mark)

    def lose(self) -> None:
        """Every process of it is gone at once, without a word: no power."""
        while there := self.processes():
            for process in there:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
        self.process.wait(timeout=60)

    def leave(self) -> None:
        """It ends in good order, unless it is gone already."""
        self.process.terminate()
        self.process.wait(timeout=60)


@dataclass(frozen=True)
class Grid:
    """`environment` is that of somebody who has the token."""

    address: str
    gcs: str
    token: str
    folder: Path
    environment: dict[str, str]
    machines: list[Machine] = field(default_factory=list)  # the head first
    _numbers: Iterator[int] = field(default_factory=itertools.count)

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

    def add(self, *options: str, cpus: int = 1, within: Sequence[str] = (), wait: bool = True) -> Machine:
        """One more machine. `within`: a command that runs another one, in a network namespace for example."""
        return self._joined([*within, RAY, "start", f"--address={self.gcs}", *options], cpus, wait=wait)

    def start_head(self, *options: str, cpus: int = 1, within: Sequence[str] = ()) -> None:
        self._joined([*within, RAY, "start", "--head", *options], cpus)

    def _joined(self, command: Sequence[str | Path], cpus: int, *, wait: bool = True) -> Machine:
        for _ in range(_ATTEMPTS):
            machine = self._started(command, cpus)
            self.machines.append(machine)
            if not wait or machine.joined():
                return machine
            machine.lose()
            self.machines.remove(machine)
        raise AssertionError(machine.output.read_text())

    def _started(self, command: Sequence[str | Path], cpus: int) -> Machine:
        number = next(self._numbers)
        mark, output = f"{self.folder}/{number}", self.folder / f"machine-{number}.txt"
        with output.open("w") as file:
            process = subprocess.Popen(
                [*command, "--block", f"--num-cpus={cpus}", "--object-store-memory=100000000"],
                env=self.environment | {"RAY_AUTH_MODE": "token", MACHINE: mark},
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return Machine(mark, process, output)


@contextmanager
def grid(
    folder: Path,
    *,
    cpus: Sequence[int] = (1, 1),
    host: str = "127.0.0.1",
    variables: dict[str, str] | None = None,
    within: Sequence[str] = (),
) -> Iterator[Grid]:
    """A head and more machines, each with so many CPUs. `folder` must have a short path: Ray's sockets lie in it.

    `host`: the head's address; it is reached from beyond loopback where that is another one than loopback's.
    `within`: a command that runs the head's.
    """
    gcs, dashboard, agent = free_ports(3)
    token = secrets.token_hex(32)
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = clean | {"HOME": str(folder), "RAY_AUTH_TOKEN": token, "RAY_USAGE_STATS_ENABLED": "0"}
    made = Grid(f"http://127.0.0.1:{dashboard}", f"{host}:{gcs}", token, folder, environment | (variables or {}))
    head = [f"--port={gcs}", f"--temp-dir={folder / 'ray'}"] + [f"--node-ip-address={host}"] * (host != "127.0.0.1")
    # The agent takes jobs; another Ray on this machine may have its default port.
    head += ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"]
    try:
        made.start_head(*head, cpus=cpus[0], within=within)
        for count in cpus[1:]:
            made.add(cpus=count)
        yield made
    finally:
        for machine in reversed(made.machines):
            machine.leave()


def without(folder: Path) -> list[str]:
    """The command that runs another one where a folder is empty: a machine that does not have what lies in it.

    Skips the test where this machine does not allow that.
    """
    hidden = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"', str(folder)]
    tried = subprocess.run([*hidden, "true"], capture_output=True, text=True)
    if tried.returncode != 0:
        pytest.skip(f"no machine can be without a folder here: {tried.stderr.strip()}")
    return hidden


def marked(name: str, value: str) -> dict[int, str]:
    """The command lines of the living processes that have this in their environment, by process id."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"{name}={value}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue  # it has ended, or is not ours
    return found


def own_address() -> str:
    """An address of this machine that others can reach."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # nothing is sent
        return str(probe.getsockname()[0])
