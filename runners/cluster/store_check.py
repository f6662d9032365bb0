"""Whether each machine of a cluster reaches the store, and has the files that a graph reads: asked before a run.

The driver puts a marker into its run folder. A machine that works with a folder must see it: else its folder of that
name is another one. At a URL nothing need be shared; whether a machine sees the marker tells there only whether its
progress and logs must be sent to the driver (`runners/runtime/relay.py`). A machine that joins later is checked by its
first task: where it does not reach the store, the task comes back (`UnreachedError`) and goes elsewhere, and the
machine is excluded for a while.

The driver uploads files that a machine does not have into the store, where it has them (`boomspec/store/sources.py`).
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError, RuntimeEnvSetupError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from boomspec.core.errors import BoomspecError, first_line, redact
from boomspec.core.graph import Node, Source
from boomspec.core.sizes import shown_bytes
from boomspec.store import Store, open_store
from boomspec.store.sources import is_present, source_name, upload_missing, uploaded
from runners.cluster.ray_cluster import fits, is_embedded, machine_name, on_other_machines
from runners.runtime.job import CheckedMachines, Job, below
from runners.runtime.journal import Journal
from runners.runtime.relay import Relay

_ANSWER_SECONDS = 180.0  # for a machine to prepare the job's environment, start a process, and answer
_INSTALL_SECONDS = 1200.0  # where it has to install packages first; Ray itself gives up after ten minutes
_LOST_SECONDS = 15.0  # for Ray to notice that a machine is lost
_SAY_SECONDS = 15.0  # of waiting, before it is noted
_POLL_SECONDS = 0.5
_RETRY_SECONDS = 20.0  # for a store at a URL; a run that is at work has more
_MARKER_SECONDS = 5.0  # a network's folder may show a new file late
_EXCLUDED_SECONDS = 600.0  # before another task checks whether a machine reaches the store by now
_INSTALLERS = ("pip", "uv", "conda")  # fields of Ray's runtime environments
_REACHED = set[tuple[str, Path, str]]()  # by this process: each task would ask the store again


@dataclass(frozen=True)
class NodeCheck:
    """What one machine has found. `problem`: why it cannot work with the store; `lacks`: ids of sources."""

    marker: bool
    problem: str = ""
    hint: str | None = None
    lacks: tuple[str, ...] = ()
    unprepared: bool = False  # Ray could not make the job's environment there


class UnreachedError(BoomspecError):
    """A machine does not reach the store; `machine` is Ray's id of it. The task that looked can run elsewhere."""

    def __init__(self, message: str, *, machine: str = "", hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.machine = machine


def look(address: str, run_folder: Path, marker: str, sources: Sequence[Source] = ()) -> NodeCheck:
    """Look from this machine at the store at `address`, and for the files of `sources`."""
    try:
        store = open_store(address, retry_seconds=_RETRY_SECONDS)
        until = time.monotonic() + (0.0 if store.is_remote else _MARKER_SECONDS)
        while not (sees := (store.root / run_folder / marker).exists()) and time.monotonic() < until:
            time.sleep(_POLL_SECONDS)
        if not (sees or store.is_remote):
            there = f"its {store.root} is another folder" if store.root.is_dir() else f"it has no folder {store.root}"
            return NodeCheck(False, there, "the store must be one folder at the same place on every machine, or a URL")
        store.check_writable()
    except BoomspecError as error:
        return NodeCheck(False, redact(error.message), error.hint)
    except OSError as error:  # a folder whose disk is gone, or that nobody may enter
        return NodeCheck(False, redact(str(error)))
    return NodeCheck(sees, lacks=tuple(source.id for source in sources if not is_present(source)))


def opened(job: Job) -> tuple[Store, bool]:
    """The store; whether it shows the driver's run folder. Raises UnreachedError on a new machine without access."""
    if job.machines is None:
        return open_store(job.store), True
    machine, place = ray.get_runtime_context().get_node_id(), (job.store, job.run_folder, job.machines.marker)
    if machine not in job.machines.checked and place not in _REACHED:
        answer = look(*place)
        if answer.problem:
            names = {node["NodeID"]: machine_name(node, with_id=True) for node in ray.nodes()}
            message = f"{names.get(machine, machine)} does not reach the store: {answer.problem}"
            raise UnreachedError(message, machine=machine, hint=answer.hint)
        _REACHED.add(place)
    store = open_store(job.store)
    return store, (job.folder(store) / job.machines.marker).exists()


class ExcludedMachines:
    """Machines that do not reach the store, as tasks have found out that came back from there."""

    def __init__(self) -> None:
        self._since: dict[str, float] = {}  # by Ray's ids of them

    def add(self, error: UnreachedError) -> str:
        """Exclude a machine for a while. Returns a note for people, the first time."""
        new = error.machine not in self._since
        self._since[error.machine] = time.monotonic()
        return f"{error.message}; tasks go to other machines" if new else ""

    def options(self, node: Node) -> dict[str, Any]:
        """Ray's, such that a task runs on none of them; none where no other machine has room for it."""
        until = time.monotonic() - _EXCLUDED_SECONDS
        excluded = {machine for machine, since in self._since.items() if since > until}
        if not excluded:
            return {}
        others = [one["Resources"] for one in ray.nodes() if one["Alive"] and one["NodeID"] not in excluded]
        if not fits(node, others):  # Ray would let it wait for ever
            return {}
        return {"label_selector": on_other_machines(excluded)}


@contextmanager
def checked_machines(
    store: Store, journal: Journal, sources: Sequence[Source], *, interrupted: Callable[[], bool]
) -> Iterator[CheckedMachines | None]:
    """Ask every machine of the connected cluster; None where there is only the driver's own.

    Raises BoomspecError naming all that do not reach the store, or lack `sources` that the driver does not have either.
    """
    if is_embedded():
        yield None
        return
    marker = f".driver-{journal.run}"
    (journal.folder / marker).touch()
    try:
        yield _ask(store, journal, marker, sources, interrupted)
    finally:
        with suppress(OSError):
            (journal.folder / marker).unlink()


def _ask(
    store: Store, journal: Journal, marker: str, sources: Sequence[Source], interrupted: Callable[[], bool]
) -> CheckedMachines:
    here = ray.get_runtime_context().get_node_id()
    names = {node["NodeID"]: machine_name(node, with_id=True) for node in ray.nodes() if node["Alive"]}
    question = ray.remote(num_cpus=0, max_retries=0, name="reaches the store?")(look)
    on = {machine: {"scheduling_strategy": NodeAffinitySchedulingStrategy(machine, soft=False)} for machine in names}
    about = store.address, below(store.root, journal.folder), marker, sources
    asked = {machine: question.options(**on[machine]).remote(*about) for machine in names}
    seconds, what_for = _patience(ray.get_runtime_context().runtime_env)

    def note(waiting: str) -> None:
        journal.event("note", message=f"waiting up to {seconds / 60:.0f} minutes for {waiting} {what_for}")

    late = _wait({reference: names[machine] for machine, reference in asked.items()}, seconds, note, interrupted)
    found = {m: _answer(reference, seconds if reference in late else None) for m, reference in asked.items()}
    answers = {machine: answer for machine, answer in found.items() if answer is not None}
    failed = {machine: answer for machine, answer in answers.items() if answer.problem}
    if not interrupted() and (failed := _without_lost(failed)):
        unreached = defaultdict(list)
        for machine, answer in failed.items():
            unreached[answer.problem].append(names[machine])
        what = f"{len(failed)} of {len(names)} machines of the cluster cannot work with the store {store.address}:"
        lines = [f"  {', '.join(of)}: {problem}" for problem, of in unreached.items()]
        hints = dict.fromkeys(answer.hint for answer in failed.values() if answer.hint)
        if store.is_remote:
            hints["credentials come from each machine's environment; a submitted job gets more with --env NAME"] = None
        raise BoomspecError("\n".join([what, *lines]), hint="; ".join(hints) or None)
    others = [answer.marker for machine, answer in answers.items() if machine != here]
    relay = None
    if store.is_remote and not (others and all(others)):  # machines that join later are like those that are there
        relay = ray.remote(num_cpus=0, max_restarts=5)(Relay).options(**on[here]).remote(journal.folder)
    if not interrupted():
        lacking = {s.id: [names[m] for m, answer in answers.items() if s.id in answer.lacks] for s in sources}
        # A machine that joins later, of those that share nothing, will have no more than these.
        _upload(store, journal, [s for s in sources if lacking[s.id] or relay is not None], lacking)
    return CheckedMachines(marker, frozenset(answers), relay)


def _without_lost(failed: dict[str, NodeCheck]) -> dict[str, NodeCheck]:
    """Those that are still there. A machine whose agent has ended prepares nothing, and is lost some seconds later."""
    until = time.monotonic() + _LOST_SECONDS
    while any(answer.unprepared for answer in failed.values()) and time.monotonic() < until:
        time.sleep(_POLL_SECONDS)
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        failed = {machine: answer for machine, answer in failed.items() if machine in alive}
    return failed


def _patience(environment: Mapping[str, Any]) -> tuple[float, str]:
    """How long a machine may take to answer where Ray makes this environment first, and what for."""
    if any(environment.get(field) for field in _INSTALLERS):
        return _INSTALL_SECONDS, "to install the job's packages (minutes, the first time)"
    return _ANSWER_SECONDS, "to answer"


def _wait(
    names: Mapping[Any, str], seconds: float, note: Callable[[str], None], interrupted: Callable[[], bool]
) -> list[Any]:
    """Wait for these references; call `note` once with the names of those that take long. Returns what did not come."""
    waiting, since, noted = list(names), time.monotonic(), False
    while waiting and time.monotonic() < since + seconds and not interrupted():
        _, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=_POLL_SECONDS)
        if waiting and not noted and time.monotonic() >= since + _SAY_SECONDS:
            noted = True
            note(", ".join(sorted(names[reference] for reference in waiting)))
    return waiting


def _upload(store: Store, journal: Journal, sources: Sequence[Source], lacking: dict[str, list[str]]) -> None:
    """Put into the store what machines lack. Raises BoomspecError for what is not on this machine either."""
    for source, size in upload_missing(store, sources):
        what = f"{source_name(source)}, {shown_bytes(size)}"
        journal.event("note", message=f"put into the store, for other machines: {what}")
    there = uploaded(store, sources)
    nowhere = [source for source in sources if lacking[source.id] and source.id not in there]
    if nowhere:
        what = "machines of the cluster do not have what the graph reads:"
        lines = [f"  {source_name(source)}: not on {', '.join(lacking[source.id])}" for source in nowhere]
        hint = "run or submit from a machine that has it and reaches the store: it is then put there"
        raise BoomspecError("\n".join([what, *lines]), hint=hint)


def _answer(reference: Any, silent: float | None) -> NodeCheck | None:
    """The answer of a machine that was not silent for so many seconds; None where it was lost on the way."""
    if silent is not None:
        return NodeCheck(False, f"did not answer for {silent:.0f} seconds")
    try:
        answer: NodeCheck = ray.get(reference)
    except (RayTaskError, RuntimeEnvSetupError) as error:
        return NodeCheck(False, first_line(error), unprepared=isinstance(error, RuntimeEnvSetupError))
    except RayError:
        return None  # the tasks that run there later look for themselves
    return answer
