"""Whether each machine of a cluster reaches the store, and has the files that a graph reads: asked before a run.

The driver puts a marker into its run folder. A machine that works with a folder must see it: else its folder of that
name is another one. At a URL nothing need be shared; whether a machine sees the marker says there only whether its
progress and logs must be sent after it (`runners/runtime/relay.py`). A machine that joins later is looked at by its
first task: where it does not reach the store, the task comes back (`UnreachedError`), goes elsewhere, and the machine
is left out.

Files that a machine does not have are put into the store by the driver, where it has them
(`boomspec/store/sources.py`).
"""

from __future__ import annotations

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
from boomspec.store import Store, is_url, open_store
from boomspec.store.sources import is_present, source_name, upload_missing, uploaded
from runners.cluster.ray_cluster import check_feasible, is_embedded
from runners.runtime.job import Job, Reach, below
from runners.runtime.journal import Journal
from runners.runtime.relay import Relay

_ANSWER_SECONDS = 180.0  # for a machine to prepare the job's environment, start a process, and answer
_INSTALL_SECONDS = 1200.0  # where it has to install packages first; Ray itself gives up after ten minutes
_LOST_SECONDS = 15.0  # for Ray to notice that a machine is lost
_SAY_SECONDS = 15.0  # of waiting, before it is said
_POLL_SECONDS = 0.5
_PATIENCE_SECONDS = 20.0  # for a store at a URL; a run that is at work has more
_MARKER_SECONDS = 5.0  # a network's folder may show a new file late
_LEFT_OUT_SECONDS = 600.0  # before another task looks whether a machine reaches the store by now
_INSTALLERS = ("pip", "uv", "conda")  # fields of Ray's runtime environments
_NODE_ID = "ray.io/node-id"  # a label that Ray gives to every machine
_REACHED = set[tuple[str, Path, str]]()  # by this process: each task would ask the store again


@dataclass(frozen=True)
class Seen:
    """What one machine has seen. `problem`: why it cannot work with the store; `lacks`: ids of sources."""

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


def look(address: str, run_folder: Path, marker: str, sources: Sequence[Source] = ()) -> Seen:
    """Look from this machine at the store at `address`, and for the files of `sources`."""
    try:
        store = open_store(address, retry_seconds=_PATIENCE_SECONDS)
        sees = _appears(store.root / run_folder / marker, 0.0 if is_url(address) else _MARKER_SECONDS)
        if not (sees or is_url(address)):
            there = f"its {store.root} is another folder" if store.root.is_dir() else f"it has no folder {store.root}"
            return Seen(False, there, "the store must be one folder at the same place on every machine, or a URL")
        store.check_writable()
    except BoomspecError as error:
        return Seen(False, redact(error.message), error.hint)
    except OSError as error:  # a folder that hangs in the air, or that nobody may enter
        return Seen(False, redact(str(error)))
    return Seen(sees, lacks=tuple(source.id for source in sources if not is_present(source)))


def opened(job: Job) -> tuple[Store, bool]:
    """The store, and whether this machine sees the driver's run folder in it.

    Raises UnreachedError where a machine that joined later does not reach the store; the next task looks again.
    """
    if job.reach is None:
        return open_store(job.store), True
    machine, place = ray.get_runtime_context().get_node_id(), (job.store, job.run_folder, job.reach.marker)
    if machine not in job.reach.checked and place not in _REACHED:
        seen = look(*place)
        if seen.problem:
            name = next((_called(node) for node in ray.nodes() if node["NodeID"] == machine), machine)
            raise UnreachedError(f"{name} does not reach the store: {seen.problem}", machine=machine, hint=seen.hint)
        _REACHED.add(place)
    store = open_store(job.store)
    return store, (job.folder(store) / job.reach.marker).exists()


class Astray:
    """Machines that do not reach the store, as tasks have found out that came back from there."""

    def __init__(
        self,
        *,
        nodes: Callable[[], list[dict[str, Any]]] = ray.nodes,
        seconds: float = _LEFT_OUT_SECONDS,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._nodes, self._seconds, self._now = nodes, seconds, now
        self._found: dict[str, float] = {}  # when, by Ray's ids of them

    def found(self, error: UnreachedError) -> str:
        """Leave a machine out for a while. Returns what to tell about it, the first time."""
        new = error.machine not in self._found
        self._found[error.machine] = self._now()
        return f"{error.message}; tasks go to other machines" if new else ""

    def options(self, node: Node) -> dict[str, Any]:
        """Ray's, such that a task runs on none of them; none where no other machine has room for it."""
        astray = {machine for machine, when in self._found.items() if self._now() - when < self._seconds}
        if not astray:
            return {}
        others = [one["Resources"] for one in self._nodes() if one["Alive"] and one["NodeID"] not in astray]
        try:
            check_feasible([node], others)
        except BoomspecError:  # Ray would let it wait for ever
            return {}
        return {"label_selector": {_NODE_ID: f"!in({','.join(sorted(astray))})"}}


@contextmanager
def reached(
    store: Store, journal: Journal, sources: Sequence[Source], *, interrupted: Callable[[], bool]
) -> Iterator[Reach | None]:
    """Ask every machine of the connected cluster; None where there is only the driver's own.

    Raises BoomspecError that names all machines that do not reach the store, or do not have one of the `sources`,
    which the driver does not have either.
    """
    if is_embedded():
        yield None
        return
    marker = f".driver-{journal.run}"
    (journal.folder / marker).touch()
    try:
        yield _asked(store, journal, marker, sources, interrupted)
    finally:
        with suppress(OSError):
            (journal.folder / marker).unlink()


def _asked(
    store: Store, journal: Journal, marker: str, sources: Sequence[Source], interrupted: Callable[[], bool]
) -> Reach:
    here = ray.get_runtime_context().get_node_id()
    machines = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
    question = ray.remote(num_cpus=0, max_retries=0)(look)
    asked = {
        machine: question.options(
            name="reaches the store?", scheduling_strategy=NodeAffinitySchedulingStrategy(machine, soft=False)
        ).remote(store.address, below(store.root, journal.folder), marker, sources)
        for machine in machines
    }
    seconds, what_for = _patience(ray.get_runtime_context().runtime_env)
    names = {reference: _called(machines[machine]) for machine, reference in asked.items()}

    def tell(who: str) -> None:
        journal.event("note", message=f"waiting up to {seconds / 60:.0f} minutes for {who} {what_for}")

    waiting = _waited(names, seconds, tell, interrupted)
    answers = {m: _answer(reference, None if reference not in waiting else seconds) for m, reference in asked.items()}
    seen = {machine: said for machine, said in answers.items() if said is not None}
    failed = {machine: said for machine, said in seen.items() if said.problem}
    if not interrupted() and (failed := _without_lost(failed)):
        raise _unreached(store, {_called(machines[machine]): said for machine, said in failed.items()}, len(machines))
    others = [said.marker for machine, said in seen.items() if machine != here]
    relay = None
    if is_url(store.address) and not (others and all(others)):  # machines that join later are like those that are there
        on_this_machine = NodeAffinitySchedulingStrategy(here, soft=False)
        actor = ray.remote(num_cpus=0, max_restarts=5)(Relay)
        relay = actor.options(scheduling_strategy=on_this_machine).remote(journal.folder)
    if not interrupted():
        lacking = {i: [_called(machines[m]) for m, said in seen.items() if i in said.lacks] for i in _ids(sources)}
        # Whoever joins later, of machines that share nothing, will have no more than these.
        _lend(store, journal, [s for s in sources if lacking[s.id] or relay is not None], lacking)
    return Reach(marker, frozenset(seen), relay)


def _without_lost(failed: dict[str, Seen]) -> dict[str, Seen]:
    """Those that are still there. A machine whose agent has ended prepares nothing, and is lost some seconds later."""
    until = time.monotonic() + _LOST_SECONDS
    while any(said.unprepared for said in failed.values()) and time.monotonic() < until:
        time.sleep(_POLL_SECONDS)
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        failed = {machine: said for machine, said in failed.items() if machine in alive}
    return failed


def _patience(environment: Mapping[str, Any]) -> tuple[float, str]:
    """How long a machine may take to answer where Ray makes this environment first, and what for."""
    if any(environment.get(field) for field in _INSTALLERS):
        return _INSTALL_SECONDS, "to install the job's packages (minutes, the first time)"
    return _ANSWER_SECONDS, "to answer"


def _waited(
    names: Mapping[Any, str], seconds: float, tell: Callable[[str], None], interrupted: Callable[[], bool]
) -> list[Any]:
    """Wait for these references, and tell once of whom, by their names. Returns those that were not answered."""
    waiting, since, told = list(names), time.monotonic(), False
    while waiting and time.monotonic() < since + seconds and not interrupted():
        _, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=_POLL_SECONDS)
        if waiting and not told and time.monotonic() >= since + _SAY_SECONDS:
            told = True
            tell(", ".join(sorted(names[reference] for reference in waiting)))
    return waiting


def _ids(sources: Sequence[Source]) -> list[str]:
    return [source.id for source in sources]


def _lend(store: Store, journal: Journal, sources: Sequence[Source], lacking: dict[str, list[str]]) -> None:
    """Put into the store what machines lack. Raises BoomspecError for what is not on this machine either."""
    for source, size in upload_missing(store, sources):
        journal.event(
            "note", message=f"put into the store, for other machines: {source_name(source)}, {shown_bytes(size)}"
        )
    there = uploaded(store, sources)
    nowhere = [
        f"  {source_name(source)}: not on {', '.join(lacking[source.id])}"
        for source in sources
        if lacking[source.id] and source.id not in there
    ]
    if nowhere:
        raise BoomspecError(
            "\n".join(["machines of the cluster do not have what the graph reads:", *nowhere]),
            hint="run or submit from a machine that has it and reaches the store: it is then put there",
        )


def _answer(reference: Any, silent: float | None) -> Seen | None:
    """What a machine has said, if it has not been silent for so many seconds.

    None where it, or the process that was asked, was lost on the way.
    """
    if silent is not None:
        return Seen(False, f"did not answer for {silent:.0f} seconds")
    try:
        seen: Seen = ray.get(reference)
    except (RayTaskError, RuntimeEnvSetupError) as error:
        return Seen(False, first_line(error), unprepared=isinstance(error, RuntimeEnvSetupError))
    except RayError:
        return None  # who works there later looks for itself
    return seen


def _unreached(store: Store, failed: dict[str, Seen], machines: int) -> BoomspecError:
    reasons = defaultdict(list)
    for name, seen in failed.items():
        reasons[seen.problem].append(name)
    lines = [f"  {', '.join(names)}: {reason}" for reason, names in reasons.items()]
    hints = dict.fromkeys(seen.hint for seen in failed.values() if seen.hint)
    if is_url(store.address):
        hints |= {"credentials come from each machine's environment; a submitted job gets more with --env NAME": None}
    what = f"{len(failed)} of {machines} machines of the cluster cannot work with the store {store.address}:"
    return BoomspecError("\n".join([what, *lines]), hint="; ".join(hints) or None)


def _called(node: dict[str, Any]) -> str:
    return f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']}, {node['NodeID'][:8]})"


def _appears(file: Path, seconds: float) -> bool:
    until = time.monotonic() + seconds
    while not file.exists():
        if time.monotonic() >= until:
            return False
        time.sleep(_POLL_SECONDS)
    return True
