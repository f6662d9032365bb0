"""Runs that are over, in a store, as the runners leave them behind. Nothing is trained."""

import json
from pathlib import Path

from boomspec.core.graph import TaskGraph
from boomspec.store import Store
from runners.runtime.journal import Journal


def publish(store: Store, task, text: str = "the payload") -> Path:
    """The artifact of a task."""
    with store.workspace(task.kind, task.id) as workspace:
        (workspace.path / "payload").write_text(text)
        return store.publish(workspace, task.kind, task.id, task.identity(), {})


def journal_of(store: Store, graph: TaskGraph) -> Journal:
    return Journal(store.run_folder(graph.name, graph.id), graph, lambda event: None)


def past_run(store: Store, graph: TaskGraph, *, state: str | None = "finished", made: bool = True) -> Path:
    """A run's folder, and the artifacts of all its tasks. Without a state it was killed."""
    journal = journal_of(store, graph)
    journal.event("run_started", tasks=len(graph.nodes))
    if made:
        for node in graph.nodes.values():
            publish(store, node.task)
    if state is not None:
        journal.event("run_finished", state=state, counts={})
    return journal.folder


def write_results(run: Path, student: float, teacher: float) -> None:
    """The part of a report's results that says how student and teacher did."""
    rows = [
        {"series": series, "measure": "held_out", "metric": metric, "value": value * factor, "stderr": stderr}
        for series, value in (("student", student), ("interpolated", 9.0), ("teacher", teacher))
        for metric, factor, stderr in (("perplexity", 10.0, None), ("loss", 1.0, 0.01))
    ]
    (run / "report").mkdir()
    content = {"title": "tiny", "outcome": "All sizes beat naive pruning.", "results": rows}
    (run / "report" / "results.json").write_text(json.dumps(content))


def age(run: Path, seconds: float) -> None:
    """Move what a run's events say into the past."""
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    lines = [json.dumps({**event, "time": event["time"] - seconds}) for event in events]
    (run / "events.jsonl").write_text("\n".join(lines) + "\n")
