"""What the executor adds to a task: 1,000 empty tasks through it, beside 1,000 bare Ray tasks, in one cluster.

An empty task is a real one whose artifact came into the store after the plan was drawn up: its worker starts, writes
that, looks at the artifact and has nothing to do; the driver submits it, hears of it and writes its events. After the
first one the executor has many of them looked at by one Ray task; "one by one" is without that. What a worker does
around the body of a task that it makes (its lock, its log, its heartbeats) is measured in one process. Each figure is
the median of three, taken in turns.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from boomspec.core.graph import Node, Source, Task, TaskGraph
from boomspec.core.tasks import Tokenize
from boomspec.plan.plan import plan_tasks
from boomspec.store import FolderStore, Store
from runners.cluster.ray_cluster import cluster
from runners.executor.view import View
from runners.runtime.interrupt import Interrupt
from runners.runtime.journal import Event, Journal


class _Quiet(View):
    def show(self, event: Event, text: str) -> None:
        pass


def graph_of(count: int) -> TaskGraph:
    text = Source("text", {"files": []}, {"files": []})
    tasks = [
        Task(Tokenize(text_field="text", skip=i, held_out_every=0, held_out_offset=0), {"text": text.id})
        for i in range(count)
    ]
    nodes = {task.id: Node(task, f"tokens {i}") for i, task in enumerate(tasks)}
    return TaskGraph("empty", nodes, {text.id: text}, tuple(nodes))


def through_the_executor(graph: TaskGraph, store: Store, folder: Path) -> float:
    from runners.executor.executor import run_tasks

    plan = plan_tasks(graph, FolderStore(folder / "nothing is here"), checksums=False)
    view = _Quiet(len(graph.nodes))
    journal = Journal(folder / "run", graph, view.event)
    start = time.perf_counter()
    with Interrupt() as interrupt:
        outcomes = run_tasks(graph, store, plan=plan, checksums=False, journal=journal, view=view, interrupt=interrupt)
    seconds = time.perf_counter() - start
    assert {outcome.state for outcome in outcomes.values()} == {"reused"}
    return seconds


@contextmanager
def one_by_one() -> Iterator[None]:
    from runners.executor import ready

    usual, ready._LOOKED_AT = ready._LOOKED_AT, 1
    try:
        yield
    finally:
        ready._LOOKED_AT = usual


def around_a_body(store: Store, folder: Path, *, times: int = 200) -> float:
    """Seconds of a worker's lock, log and heartbeats for one task."""
    from runners.executor.heartbeat import beating
    from runners.runtime.context import Progress
    from runners.runtime.output import captured

    start = time.perf_counter()
    for i in range(times):
        with captured(folder / f"{i}.log"), beating(Progress(None)), store.claimed("tokenize", f"{i:064}"):
            pass
    return (time.perf_counter() - start) / times


def bare(count: int) -> float:
    import ray

    @ray.remote
    def nothing(index: int) -> int:
        return index

    start = time.perf_counter()
    assert ray.get([nothing.remote(i) for i in range(count)]) == list(range(count))
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=1000)
    count = parser.parse_args().tasks
    graph = graph_of(count)
    with tempfile.TemporaryDirectory() as temporary, cluster(cpus=2):
        store = FolderStore(Path(temporary) / "store")
        for node in graph.nodes.values():
            with store.workspace(node.task.kind, node.id) as workspace:
                (workspace.path / "payload").write_bytes(b"x")
                store.publish(workspace, node.task.kind, node.id, node.task.identity(), {})
        bare(count)  # workers start
        seconds: dict[str, list[float]] = {
            name: [] for name in ("bare Ray tasks", "through the executor", "one by one")
        }
        around = []
        for turn in range(3):
            folder = Path(temporary) / str(turn)
            seconds["bare Ray tasks"].append(bare(count))
            seconds["through the executor"].append(through_the_executor(graph, store, folder / "together"))
            with one_by_one():
                seconds["one by one"].append(through_the_executor(graph, store, folder / "alone"))
            around.append(around_a_body(store, folder))
    medians = {name: statistics.median(found) for name, found in seconds.items()}
    print(f"{count} empty tasks on 2 CPUs, median of 3 in turns")
    for name, median in medians.items():
        times = median / medians["bare Ray tasks"]
        print(f"  {name:20}  {median:6.2f} s  {1000 * median / count:6.2f} ms a task  {times:4.1f} times")
    print(f"  around the body of a task that is made  {1000 * statistics.median(around):6.2f} ms")


if __name__ == "__main__":
    main()
