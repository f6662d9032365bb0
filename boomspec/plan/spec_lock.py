"""A spec and the lock beside it: making the lock, checking it, and holding a run to it.

    spec + lock --lock_now--> how things stand   what `boomspec lock` writes and `--check` compares
    graph + lock --RunLock.hold--> graph         what `boomspec run --locked` runs; raises where the lock has drifted

Making and checking ask the hub what a name stands for NOW, and fall back on the local cache and then on the lock where
the hub gives no answer. A locked run does not ask: commits come from the lock, whatever has happened to a branch since.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from boomspec.compile.compiler import answers_of, compile_experiments
from boomspec.compile.records import evaluations
from boomspec.core.errors import BoomspecError
from boomspec.core.graph import TaskGraph
from boomspec.core.tasks import LmEval
from boomspec.plan.graph_lock import Asked, expecting, lock_of
from boomspec.plan.lock import Difference, Lock, drifts, lock_path, read_lock
from boomspec.plan.run import store_of
from boomspec.spec.experiments import load_experiments, split_address
from boomspec.spec.spec_file import Pins
from boomspec.store import Store, Where


@dataclass(frozen=True)
class Standing:
    """How things stand: the lock that they make, the one that there is, and why the hub gave no answer, if so."""

    now: Lock
    locked: Lock | None
    silence: str | None


def lock_now(spec: Path, store: Where | None = None) -> Standing:
    """The lock of a spec file, all of its experiments, as things stand, and the lock that lies beside it.

    Raises BoomspecError for a lock that cannot be read or is of another spec.
    """
    path, label = split_address(spec)
    if label is not None:
        raise BoomspecError(f"a lock is of a whole file, not of '{label}' alone", hint=f"boomspec lock {path}")
    files = load_experiments(path)
    place, name = lock_path(path), files[0].spec.name
    locked = read_lock(place, spec=name) if place.exists() else None
    if locked is not None:
        files = tuple(replace(file, pins=locked.pins(only_offline=True)) for file in files)
    found = store_of(files[0], store)
    compiled = compile_experiments(files, answers_of(found))
    # A graph that waits for a search has no evaluations yet.
    waiting = [evaluation for file in files for evaluation in evaluations(file)] if compiled.pending else []
    measures = [(record.measure, source) for _, record, source in waiting]
    more = [(measure, source) for measure, source in measures if isinstance(measure, LmEval) and source is not None]
    asked = Asked()
    now = lock_of(compiled.graph, found, asked=asked, more=more)
    return Standing(now, locked, asked.silence)


def required_lock(spec: Path) -> tuple[Path, Lock]:
    """The lock of a spec, or of one of its experiments, and where it lies. Raises BoomspecError where there is none."""
    if spec.suffix == ".json" or spec.is_dir():
        message = f"{spec}: is compiled: what its names stand for is settled in it already"
        raise BoomspecError(message, hint="--locked takes a spec")
    path, label = split_address(spec)
    place = lock_path(path)
    if not place.exists():
        raise BoomspecError(f"{place}: there is no lock yet", hint=f"boomspec lock {path}")
    return place, read_lock(place, spec=None if label is not None else load_experiments(path)[0].spec.name)


@dataclass(frozen=True)
class RunLock:
    """The lock that a run keeps to. `packages`: refuse other versions of packages, too."""

    place: Path
    lock: Lock
    packages: bool

    @property
    def pins(self) -> Pins:
        return self.lock.pins()

    def hold(self, graph: TaskGraph, store: Store) -> TaskGraph:
        """The graph, with the rows that it has to read. Raises BoomspecError where something is not as locked."""
        now = lock_of(graph, store, asked=Asked())
        if drifted := drifts(self.lock, now, partial=True, packages=self.packages):
            rows = "\n".join(f"  {line}" for line in drift_lines(drifted))
            hint = "bring back what was locked, or take what is there now: boomspec lock SPEC"
            raise BoomspecError(f"{self.place}: what was locked has drifted, so nothing was run\n{rows}", hint=hint)
        return expecting(graph, self.lock)


def drift_lines(found: Sequence[Difference], *, most: int = 30) -> list[str]:
    """Differences for people, one a line, the first ones of many."""
    lines = [str(difference) for difference in found[:most]]
    return lines + ([f"... and {len(found) - most} more (all of them with --json)"] if len(found) > most else [])
