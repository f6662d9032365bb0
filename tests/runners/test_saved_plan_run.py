"""A saved plan, run: exactly what was planned; afterwards there is nothing left to do, and the plan is stale."""

from pathlib import Path

from boomspec.core.graph import Cost, Node, Task, TaskGraph
from boomspec.plan.plan import SavedPlan, plan_tasks
from boomspec.store import FolderStore
from tests.messages import wording
from tests.runners.corpora import record, write_texts
from tests.runners.here import Done, boomspec

TEXTS = [f"document number {index}, which is one of many\n" * 5 for index in range(12)]


def run(file: Path) -> Done:
    return boomspec("run", file, "--plain")


def test_a_saved_plan_is_run_once_and_then_there_is_nothing_to_do(connected: None, tmp_path: Path) -> None:
    text, store = write_texts(tmp_path / "texts", TEXTS), FolderStore(tmp_path / "store")
    task = Task(record(), {"text": text.id})
    graph = TaskGraph("one", {task.id: Node(task, "tokenize", cost=Cost(read=5))}, {text.id: text}, (task.id,))

    def saved(name: str) -> Path:
        SavedPlan(graph, plan_tasks(graph, store), store.address, cpus=1).save(tmp_path / name)
        return tmp_path / name

    first = saved("first.json")
    done = run(first)
    assert done.returncode == 0, done.stdout + done.stderr
    assert store.has("tokenize", task.id)
    made = store.record("tokenize", task.id)
    assert made is not None
    assert made["provenance"]["cost"]["read"] == 5  # with the seconds: how fast such tasks are here
    assert plan_tasks(graph, store).ids("run") == []
    again = run(saved("second.json"))
    assert again.returncode == 0
    assert "nothing to do" in again.stdout
    stale = run(first)
    assert stale.returncode == 2
    assert wording("saved_plan_run.tokenize_planned_run_not") in stale.stderr
    (store.path("tokenize", task.id) / "artifact.json").unlink()
    gone = run(tmp_path / "second.json")
    assert gone.returncode == 2  # it was to be reused: nothing is made that the plan did not say
    assert not store.has("tokenize", task.id)
