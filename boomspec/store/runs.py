"""The runs of a store, read from their folders: when, how long, how far, how they ended, the headline numbers.

No content of a folder is an error: what cannot be read is reported as that run's problem. Graphs are not validated: a
store may have a thousand runs of a thousand tasks.
"""

import time
from collections.abc import Callable, Iterable, Set
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from boomspec.core.errors import BoomspecError, did_you_mean
from boomspec.core.files import read_json
from boomspec.core.graph import SCHEMA_VERSION
from boomspec.core.tasks import KINDS
from boomspec.store.folder import Store
from boomspec.store.lock import is_running
from boomspec.store.record import is_task_id, parsed_json

RUNS_SCHEMA_VERSION = 1
State = Literal["running", "finished", "failed", "interrupted", "killed", "not started"]


@dataclass(frozen=True)
class Trouble:
    """A task that failed or was blocked in the last execution."""

    task: str
    state: str
    error: str
    log: Path | None


@dataclass(frozen=True)
class PastRun:
    """One run's folder. Times are seconds since 1970; what is unknown is None or empty."""

    name: str
    state: State
    problem: str | None  # why its graph cannot be read
    started: float | None  # as `seconds`: of the last execution that did not find everything finished
    seconds: float | None
    experiments: tuple[str, ...]  # labels
    tasks: dict[str, str]  # id -> kind, as the graph says
    made: int  # tasks whose artifact is in the store now
    same: int  # tasks that were reused because their inputs were equal byte for byte
    outcome: str
    numbers: dict[str, dict[str, float]]  # "held_out loss" -> series -> value
    troubles: tuple[Trouble, ...]
    folder: Path
    names: dict[str, str]  # of its tasks, by id
    last_event: float | None

    @property
    def logs(self) -> dict[str, Path]:
        """The log of each of its tasks that has one, by the task's name."""
        found = ((name, self.folder / "logs" / f"{task_id}.log") for task_id, name in self.names.items())
        return {name: log for name, log in found if log.is_file()}

    @property
    def last_seen(self) -> float:
        """When something was last written about it."""
        return self.last_event or self.folder.lstat().st_mtime

    def to_json(self) -> dict[str, Any]:
        shown = {key: value for key, value in vars(self).items() if key not in ("names", "last_event")}
        shown |= {"experiments": list(self.experiments), "tasks": len(self.tasks), "folder": str(self.folder)}
        shown["troubles"] = [{**vars(t), "log": None if t.log is None else str(t.log)} for t in self.troubles]
        return {"run": self.folder.name, **shown}


def past_runs(store: Store, folders: Iterable[Path] | None = None) -> list[PastRun]:
    """The runs of these folders, by default all of a store, the newest first."""
    elsewhere, ids = store.running_elsewhere(), cache(store.ids)
    found = [_past_run(folder, ids, elsewhere) for folder in (store.run_folders() if folders is None else folders)]
    return sorted(found, key=lambda run: (-run.last_seen, run.folder.name))


def chosen_run(runs: list[PastRun], name: str, store: Store) -> PastRun:
    """The run of this name, or the only one that starts so; of a path, that folder alone. Else BoomspecError."""
    wanted = Path(name).name
    if wanted != name.rstrip("/"):
        found = [run for run in runs if run.folder.resolve() == Path(name).resolve()]
    else:
        exact = [run for run in runs if run.folder.name == wanted]
        found = exact or [run for run in runs if wanted and run.folder.name.startswith(wanted)]
    if len(found) == 1:
        return found[0]
    if found:
        raise BoomspecError(f"{len(found)} runs are called {wanted}...", hint=f"one of {_listed(found)}")
    names = [run.folder.name for run in runs]
    hint = did_you_mean(wanted, names) or (f"there are {_listed(runs)}" if runs else "there are no runs in this store")
    raise BoomspecError(f"no run '{name}' in {store.address}/runs", hint=hint)


def read_graph_data(folder: Path) -> dict[str, Any]:
    """The graph of a run as plain data. Raises BoomspecError where it cannot be read or is of another version."""
    path = folder / "graph.json"
    try:
        data = read_json(path)
    except FileNotFoundError:
        raise BoomspecError("it holds no graph.json") from None
    except (OSError, ValueError) as error:
        raise BoomspecError(f"its graph.json cannot be read: {error}") from error
    version = data.get("boomspec_graph") if isinstance(data, dict) else None
    if version != SCHEMA_VERSION:
        raise BoomspecError(f"its graph has version {version!r}, this boomspec reads {SCHEMA_VERSION}")
    assert isinstance(data, dict)
    tasks = data.get("tasks")
    if not isinstance(tasks, dict) or not all(is_task_id(i) and _kind(task) for i, task in tasks.items()):
        raise BoomspecError("its graph.json names no tasks")
    return data


def _past_run(folder: Path, ids: Callable[[str], Set[str]], elsewhere: frozenset[str]) -> PastRun:
    events, working = _last_run(folder / "events.jsonl")
    graph: dict[str, Any] = {"tasks": {}}
    problem = None
    try:
        graph = read_graph_data(folder)
    except BoomspecError as error:
        problem = error.message
    kinds = {task_id: _kind(task) for task_id, task in graph["tasks"].items()}
    last = events[-1] if events else {}
    state: State = "killed" if events else "not started"
    if folder.name in elsewhere or is_running(folder):
        state = "running"
    elif last.get("event") == "run_finished" and last.get("state") in ("finished", "failed", "interrupted"):
        state = last["state"]
    times, seen = ([e["time"] for e in found if isinstance(e.get("time"), int | float)] for found in (working, events))
    if times and state == "running":
        times.append(time.time())
        seen = times
    results = {}
    if state not in ("running", "not started"):
        with suppress(OSError, ValueError):
            results = read_json(folder / "report" / "results.json")
    results = results if isinstance(results, dict) else {}
    troubles = []
    for event in events:
        if event.get("event") in ("task_failed", "task_blocked"):
            log = folder / "logs" / f"{event.get('task')}.log"
            what, error_text = str(event["event"]).removeprefix("task_"), str(event.get("error", ""))
            troubles.append(Trouble(str(event.get("name", "")), what, error_text, log if log.is_file() else None))
    return PastRun(
        folder=folder,
        name=str(graph.get("name", folder.name.rpartition("-")[0] or folder.name)),
        state=state,
        problem=problem,
        started=times[0] if times else None,
        seconds=times[-1] - times[0] if times else None,
        last_event=seen[-1] if seen else None,
        experiments=tuple(str(e.get("label", "")) for e in _objects(graph.get("experiments"))),
        tasks=kinds,
        names={task_id: str(task.get("name", task_id)) for task_id, task in graph["tasks"].items()},
        made=sum(kind in KINDS and task_id in ids(kind) for task_id, kind in kinds.items()),
        same=sum(event.get("event") == "task_reused" and "same_as" in event for event in working),
        outcome=str(results.get("outcome", "")),
        numbers=_numbers(results),
        troubles=tuple(troubles),
    )


def _last_run(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The events of the last execution, and of the last one with something to do. A killed run leaves half lines."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return [], []
    events = _objects([parsed_json(line) for line in lines])
    started = [event for event in events if event.get("event") == "run_started"]
    if not started:
        return [], []
    working = [event for event in started if event.get("tasks") != 0] or started
    last, worked = ([e for e in events if e.get("run") == found[-1].get("run")] for found in (started, working))
    return last, worked


def _numbers(results: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Of one experiment's student and teacher: by measure the first metric with a standard error, else the first."""
    rows = [row for row in _objects(results.get("results")) if "experiment" not in row]
    found: dict[str, dict[str, float]] = {}
    for measure in dict.fromkeys(str(row.get("measure")) for row in rows):
        own = [row for row in rows if str(row.get("measure")) == measure]
        metric = next((row.get("metric") for row in own if row.get("stderr") is not None), own[0].get("metric"))
        own = [row for row in own if row.get("metric") == metric and row.get("series") in ("student", "teacher")]
        ends = {row["series"]: float(row["value"]) for row in own if isinstance(row.get("value"), int | float)}
        if ends:
            found[f"{measure} {metric}"] = ends
    return found


def _objects(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _kind(task: Any) -> str:
    kind = task.get("kind") if isinstance(task, dict) else None
    return kind if isinstance(kind, str) else ""


def _listed(runs: list[PastRun]) -> str:
    return ", ".join(run.folder.name for run in runs[:5]) + (", ..." if len(runs) > 5 else "")
