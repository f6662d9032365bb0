"""Write and read a run's events, status, logs and task progress in its run folder.

    graph.json                 what runs
    lock.json                  what its names stood for, and the packages that ran it
    events.jsonl               one line per transition, on the disk within half a second; every run appends
    status.json                how the last run ended
    logs/<task id>.log         what the task printed, and its traceback
    progress/<task id>.jsonl   what the task reports while it runs (written by its worker)
    tensorboard/               the numbers of trainings and results, for TensorBoard (`runners/executor/tracking.py`)

An event is {"time", "run", "event", ...}. Events: run_started, task_started, task_retried, task_finished,
task_reused, task_failed, task_blocked, task_interrupted, note, run_finished. Those of a task have "task"
(its id) and "name". Nothing here holds a secret.
"""

import json
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from boomspec.core.errors import redact
from boomspec.core.files import flush, read_json, write_atomically
from boomspec.core.graph import TaskGraph
from boomspec.core.json_text import json_text
from runners.runtime.task_errors import survived

Event = dict[str, Any]
_FLUSH_SECONDS = 0.1


def log_file(run_folder: Path, task_id: str) -> Path:
    return run_folder / "logs" / f"{task_id}.log"


def progress_file(run_folder: Path, task_id: str) -> Path:
    return run_folder / "progress" / f"{task_id}.jsonl"


def make_subfolders(run_folder: Path) -> None:
    """The folders that workers write into."""
    for file in (log_file(run_folder, ""), progress_file(run_folder, "")):
        file.parent.mkdir(parents=True, exist_ok=True)


class Journal:
    """The events of one run: written, and passed to `listen`."""

    def __init__(self, folder: Path, graph: TaskGraph, listen: Callable[[Event], None]) -> None:
        self.folder = folder
        self.run = secrets.token_hex(4)  # two runs of one graph write into the same folder
        self._names = {node.id: node.name for node in graph.nodes.values()}
        self._listen = listen
        self._beside: list[SimpleQueue[str]] = []
        self._unwritten = b""
        self._unflushed, self._flushed = False, -_FLUSH_SECONDS
        self._troubled = False
        make_subfolders(folder)
        write_atomically(folder / "graph.json", json_text(redact(graph.to_json()), indent=1) + "\n")

    def notes_failures_of(self, failures: SimpleQueue[str]) -> None:
        """Note what comes into `failures`, of something that may fail without ending the run."""
        self._beside.append(failures)

    def note_failures(self) -> None:
        for failures in self._beside:
            while not failures.empty():
                self.event("note", message=failures.get())

    def log(self, task_id: str) -> Path:
        return log_file(self.folder, task_id)

    def progress(self, task_id: str) -> Path:
        return progress_file(self.folder, task_id)

    def event(self, event: str, task_id: str | None = None, **fields: Any) -> None:
        """Write one event. Its texts are redacted."""
        task = {} if task_id is None else {"task": task_id, "name": self._names[task_id]}
        line: Event = {"time": round(time.time(), 3), "run": self.run, "event": event, **task, **redact(fields)}
        self._unwritten += (json_text(line) + "\n").encode()
        events = self.folder / "events.jsonl"
        # What a full disk does not take waits for the next event.
        with survived(events.name, self._trouble, self.folder), events.open("ab", buffering=0) as file:
            while self._unwritten:
                self._unwritten = self._unwritten[file.write(self._unwritten) :]
        # Half of all events are starts, which reach the disk with the next one.
        self._unflushed = self._unflushed or event != "task_started"
        self.flush(at_once=event.startswith("run_"))
        self._listen(line)

    def flush(self, *, at_once: bool = False) -> None:
        """Make what was written reach the disk, unless something did a moment ago: a run of short tasks would wait."""
        if not self._unflushed or (not at_once and time.monotonic() - self._flushed < _FLUSH_SECONDS):
            return
        events = self.folder / "events.jsonl"
        with survived(events.name, self._trouble, self.folder), suppress(FileNotFoundError):
            flush(events)
            self._unflushed = False
        self._flushed = time.monotonic()

    def _trouble(self, message: str) -> None:
        if not self._troubled:
            self._listen({"event": "note", "message": f"{message}; it gets its lines when there is room"})
        self._troubled = True

    def status(self, status: dict[str, Any]) -> None:
        """Replace status.json, where the disk has room. Its texts are redacted."""
        text = json_text({"run": self.run, **redact(status)}, indent=1) + "\n"
        with survived("status.json", lambda note: self._listen({"event": "note", "message": note}), self.folder):
            write_atomically(self.folder / "status.json", text)


def last_status(folder: Path) -> dict[str, Any]:
    """How the last run of this folder ended; empty where there was none, or it was killed in its first run."""
    status: dict[str, Any] = {}
    with suppress(OSError, ValueError):
        status = read_json(folder / "status.json")
    return status


def last_failures(folder: Path) -> dict[str, str]:
    """Why tasks failed or were blocked in the last run of this folder, by task id."""
    tasks = last_status(folder).get("tasks", {})
    return {i: task["error"] for i, task in tasks.items() if task["state"] in ("failed", "blocked")}


def known_failures(runs: Path) -> dict[str, str]:
    """Why tasks failed or were blocked in the last run of any folder in `runs`; of several reasons the newest."""
    ended = sorted(runs.glob("*/status.json"), key=lambda path: path.stat().st_mtime)
    return {task: error for path in ended for task, error in last_failures(path.parent).items()}


class Follower:
    """Reads the lines that others append to one JSON-lines file, from the end that it has now."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._offset = file.stat().st_size if file.exists() else 0

    def lines(self) -> list[dict[str, Any]]:
        """The whole lines that have come since the last call, without those that are not JSON."""
        data = b""
        with suppress(FileNotFoundError), self._file.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        end = data.rfind(b"\n") + 1
        self._offset += end
        found = []
        for text in data[:end].splitlines():
            with suppress(ValueError):  # two runs wrote at the same instant, or one was killed while it wrote
                found.append(json.loads(text))
        return [line for line in found if isinstance(line, dict)]
