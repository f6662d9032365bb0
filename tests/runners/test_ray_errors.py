"""What a task without an outcome is said to have failed of: only a death is a lost worker."""

from pathlib import Path

import pytest
from ray import exceptions
from ray.exceptions import RayError, RayTaskError

from boomspec.core.errors import BoomspecError
from boomspec.core.execution import Execution
from boomspec.core.graph import Node, Task, TaskGraph
from boomspec.plan.plan import plan_tasks
from boomspec.store import FolderStore
from runners.cluster.ray_errors import describe_ray_error, trace
from runners.executor.view import View
from runners.runtime.interrupt import Interrupt
from runners.runtime.journal import Journal
from tests.messages import wording
from tests.runners.corpora import record, write_texts


class Unreadable(str):
    """A text that a process can write and no other one can read: as a class of a package that is missing there."""

    def __reduce__(self):
        return eval, ("__import__('a_package_that_is_missing')",)


def raised(cause: Exception) -> RayError:
    return RayTaskError("execute", "Traceback: ...", cause).as_instanceof_cause()


DEATHS = [
    exceptions.WorkerCrashedError(),
    exceptions.NodeDiedError("its node is dead"),
    exceptions.LocalRayletDiedError(),
    exceptions.OutOfMemoryError("Task was killed due to the node running low on memory."),
    exceptions.OwnerDiedError("ab" * 14, None, ""),
]


@pytest.mark.parametrize("error", DEATHS, ids=lambda error: type(error).__name__)
def test_the_death_of_a_process_or_machine_is_a_lost_worker(error: RayError) -> None:
    assert describe_ray_error(error, attempts=2).startswith(wording("ray_errors.worker_lost_attempts"))
    assert describe_ray_error(error, attempts=0).startswith(wording("ray_errors.worker_lost_before_began"))


OTHERS = [
    (raised(ModuleNotFoundError("No module named 'lm_eval'")), "ModuleNotFoundError: No module named 'lm_eval'"),
    (raised(PermissionError(13, "Permission denied", "/store/x")), "PermissionError: [Errno 13] Permission denied"),
    (raised(BoomspecError("store s3://b: access denied", hint="s3:PutObject")), "store s3://b: access denied\n  hint:"),
    (raised(exceptions.RaySystemError(ZeroDivisionError("by zero"), "...")), "ZeroDivisionError: by zero"),
    (raised(AssertionError()), "outside of the task's body: AssertionError"),
    (exceptions.RuntimeEnvSetupError("pip said:\nNo matching distribution"), "prepared: No matching distribution"),
    (exceptions.TaskUnschedulableError("no node has the label"), "could not place it: "),
    (exceptions.RpcError("unavailable"), "Ray could not run it: RpcError: "),
]


@pytest.mark.parametrize(("error", "said"), OTHERS, ids=[said[:30] for _, said in OTHERS])
def test_whatever_else_is_wrong_is_named_and_is_no_lost_worker(error: RayError, said: str) -> None:
    text = describe_ray_error(error, attempts=1)
    assert said in text
    assert "lost" not in text
    assert "attempts" not in text


def test_no_secret_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_0123456789abcdef")
    error = raised(ValueError("with hf_0123456789abcdef"))
    assert "hf_0123456789abcdef" not in describe_ray_error(error, attempts=1) + trace(error)


def test_a_job_that_no_worker_can_read_fails_once_with_its_reason_and_its_trace(
    tmp_path: Path, connected: None, capsys: pytest.CaptureFixture[str]
) -> None:
    text = write_texts(tmp_path / "texts")
    good = Node(Task(record(), {"text": text.id}), "good tokens")
    bad = Node(Task(record(skip=1), {"text": text.id}), "bad tokens", Execution(retries=3, rows={"x": Unreadable("x")}))
    graph = TaskGraph("unreadable", {node.id: node for node in (bad, good)}, {text.id: text}, (good.id, bad.id))
    store = FolderStore(tmp_path / "store")
    from runners.executor.executor import run_tasks

    journal = Journal(store.run_folder(graph.name, graph.id), graph, lambda event: None)
    outcomes = run_tasks(
        graph,
        store,
        plan=plan_tasks(graph, store),
        checksums=False,
        journal=journal,
        view=View(2),
        interrupt=Interrupt(),
    )
    assert outcomes[good.id].state == "made"
    failed = outcomes[bad.id]
    assert failed.state == "failed"
    assert failed.error == (wording("ray_errors.error_outside_task_body", name="a_package_that_is_missing"))
    log = journal.log(bad.id).read_text()
    assert "Traceback" in log
    assert "a_package_that_is_missing" in log
    started = (journal.folder / "events.jsonl").read_text()
    assert "task_retried" not in started
