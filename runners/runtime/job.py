"""One task of one run as plain data: what a worker must know of it (`Job`), and how it ended (`Outcome`).

A job holds addresses and no paths: each machine opens the store itself, and has its inputs where the store puts them.
"""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from boomspec.core.errors import BoomspecError
from boomspec.core.graph import Node, Source
from boomspec.core.layers import LayerPlan
from boomspec.core.tasks import KINDS
from boomspec.store import Store
from boomspec.store.sources import readable_source

TaskState = Literal["made", "reused", "failed", "blocked", "interrupted"]


@dataclass(frozen=True)
class Outcome:
    """How a task ended. `error` says why, where it did not succeed; it holds no secrets."""

    name: str
    state: TaskState
    error: str = ""
    cause: str = ""  # name of the task whose failure this one follows from
    seconds: float = 0.0
    same_as: str = ""  # id of the artifact that was made of the same inputs, and stands for this one's

    @property
    def succeeded(self) -> bool:
        return self.state in ("made", "reused")


@dataclass(frozen=True)
class Input:
    """One input of a task: the folder of an artifact, or a source that the graph does not make."""

    id: str
    path: Path | None = None
    source: Source | None = None

    @property
    def folder(self) -> Path:
        if self.path is None:
            raise TypeError(f"input {self.id[:12]} is a source, not an artifact")
        return self.path


@dataclass(frozen=True)
class CheckedMachines:
    """What the driver has found out about the machines of its cluster."""

    marker: str  # a file in the run's folder
    checked: frozenset[str]  # Ray's ids of the machines that reach the store
    relay: Any = None  # the actor `Relay`, where machines do not see the run's folder


@dataclass(frozen=True)
class Job:
    """Everything that a worker must know about one task of one run."""

    node: Node
    inputs: dict[str, Input]
    input_kinds: dict[str, str]  # kinds of the inputs that are artifacts, by id
    store: str  # the address of the store
    reads: str  # of the store of the inputs; another one where artifacts are made again for comparison
    run_folder: Path  # below the store's folder on each machine, or absolute
    run: str
    commit: str | None
    hub: bool  # whether something of the graph is read from the hub
    machines: CheckedMachines | None = None  # None: there is only the driver's own
    same_as: str = ""  # id of the artifact to publish under this one's; nothing is to be computed
    anew: bool = False  # compute it, whatever was made of the same inputs
    checksums: bool = False  # compare the contents of what is published under another id with its record
    plan: LayerPlan | None = (
        None  # of a model that can be measured as layers of `owners`, in place of the input `model`
    )
    owners: dict[str, Input] = field(default_factory=dict)  # the inputs `teacher` and `student` then

    @property
    def relay(self) -> Any:
        return None if self.machines is None else self.machines.relay

    def folder(self, store: Store) -> Path:
        """The run's folder on this machine, where the store has been opened."""
        return store.root / self.run_folder

    def fetched(self, store: Store) -> dict[str, Input]:
        """The inputs, each in files of this machine. Raises BoomspecError for an artifact that cannot be used."""
        roles = {role: given for role, given in self.inputs.items() if given.id in self.input_kinds}
        tasks = {(self.input_kinds[given.id], given.id) for given in roles.values()}
        try:
            store.check_before_fetch(tasks)
        except BoomspecError as error:
            names = (role for role, given in roles.items() if given.id[:12] in error.message)
            raise BoomspecError(f"input {next(names, '?')}: {error.message}", hint=error.hint) from error
        paths = store.fetch_all(tasks) if self.node.task.record.reads_models else fetch_numbers(store, tasks)
        own = {role: paths[self.input_kinds[given.id], given.id] for role, given in roles.items()}
        return {
            role: replace(given, path=own.get(role), source=given.source and readable_source(store, given.source))
            for role, given in self.inputs.items()
        }


def fetch_numbers(store: Store, tasks: Iterable[tuple[str, str]]) -> dict[tuple[str, str], Path]:
    """For each of these artifacts, which the store has, a folder on this machine with everything but a model."""
    tasks = list(tasks)
    beside_models = [task for task in tasks if KINDS[task[0]].numbers]
    with ThreadPoolExecutor(16) as pool:
        folders = pool.map(lambda task: store.fetch_files(task, KINDS[task[0]].numbers), beside_models)
        found = dict(zip(beside_models, folders, strict=True))
    return found | store.fetch_all(task for task in tasks if task not in found)


def below(root: Path, folder: Path) -> Path:
    """A folder as it is named on every machine: below the store's folder where it lies there, else as it is."""
    return folder.relative_to(root) if folder.is_relative_to(root) else folder
