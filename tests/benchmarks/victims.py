"""What `chaos.py` kills: processes of a cluster by the words in their command lines, machines, and the driver."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.runners.grid import Grid, Machine, grid

KINDS = ("tokenize", "pretrain", "distill", "interpolate")
MACHINES = 2  # beside the head

# Words in the command line of the process that is killed, and how often such a one is chosen.
VICTIMS: dict[str, tuple[float, tuple[str, ...]]] = {
    "worker of a task": (6, tuple(f"ray::{kind}" for kind in KINDS)),
    "worker of a group": (3, ("ray::RayTrainWorker", "ray::_RayTrainWorker")),
    "controller of a group": (1, ("ray::TrainController",)),
    "idle worker": (1, ("ray::IDLE",)),
    "raylet": (3, ("/raylet/raylet",)),
    "agent of a machine": (1, ("ray::DashboardAgent", "ray::RuntimeEnvAgent")),
    "cluster's services (GCS)": (0.7, ("gcs_server",)),
    "job server": (0.7, ("ray::Dashboard ", "/dashboard/dashboard.py")),
    "supervisor of a job": (1, ("ray::JobSupervisor",)),
    "driver": (3, ("-m runners graph.json",)),
}
WHOLE_MACHINE, HEAD, OF_THE_HEAD = "machine with everything", "head with everything", "raylet or agent of the head"
# Without these a command cannot go on, and is given again.
DRIVERS_OWN = {"driver", "cluster's services (GCS)", "job server", "supervisor of a job", HEAD, OF_THE_HEAD}
# Of machines at one address Ray takes any for the driver's own, and the driver ends with it.
PERHAPS_DRIVERS = {"raylet", "agent of a machine", WHOLE_MACHINE}
WEIGHTS = {name: weight for name, (weight, _) in VICTIMS.items()} | {WHOLE_MACHINE: 3, HEAD: 0.7, OF_THE_HEAD: 0.7}


@dataclass
class Cluster:
    """One that is started again when its head is gone."""

    folder: Path
    started: int = 0
    there: Grid | None = None
    _open: ExitStack = field(default_factory=ExitStack)

    @property
    def grid(self) -> Grid:
        assert self.there is not None
        return self.there

    def alive(self) -> list[Machine]:
        return [machine for machine in self.grid.machines if machine.works]

    def mend(self) -> None:
        """Start what is missing: a machine whose raylet has ended, a cluster whose head's has."""
        if self.there is None or not self.grid.machines[0].works:
            self.close()
            place = self.folder / str(self.started)
            place.mkdir()
            self.started += 1
            self.there = self._open.enter_context(grid(place))
            for _ in range(MACHINES - 1):
                self.grid.add(wait=False)
            return
        for machine in self.grid.machines[1:]:
            if not machine.works:
                machine.lose()  # what it left
                self.grid.machines.remove(machine)
                self.grid.add(wait=False)

    def close(self) -> None:
        if self.there is not None:
            for machine in reversed(self.grid.machines):
                machine.lose()
        with suppress(AssertionError):
            self._open.close()
        self._open, self.there = ExitStack(), None


def candidates(cluster: Cluster, driver: int | None) -> Iterator[tuple[str, Callable[[], bool]]]:
    """What could be killed now: its kind, and how it is killed, which says whether it was still there.

    driver: the process of a driver that runs outside of the cluster.
    """

    def killing(process: int) -> Callable[[], bool]:
        def kill() -> bool:
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                return False
            return True

        return kill

    def losing(machine: Machine) -> Callable[[], bool]:
        def lose() -> bool:
            there = machine.works
            machine.lose()
            return there

        return lose

    if driver is not None:
        yield "driver", killing(driver)
    for machine in cluster.alive():
        heads = machine is cluster.grid.machines[0]
        for process, command in machine.processes().items():
            for name, (_, words) in VICTIMS.items():
                if any(word in command for word in words):
                    # Raylet and agents end with each other.
                    own = heads and name in ("raylet", "agent of a machine")
                    yield OF_THE_HEAD if own else name, killing(process)
                    break
        yield HEAD if heads else WHOLE_MACHINE, losing(machine)
