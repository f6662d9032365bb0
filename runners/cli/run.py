"""`python -m runners GRAPH.json --store DIR`: run a compiled graph, or the graphs of a spec with a search one by one.

`boomspec run` compiles a spec up to its searches, and again when they have found something. It hands all these graphs
to one process (`--stages`), so Ray starts once. Standard input is then a socket. A line that comes is JSON: the next
command line, or null for an interrupt. A line that goes is the exit code of a graph. The last one has no --stages.

Exit codes: 0 every target is in the store, 1 something failed, 2 the input is wrong, 130 interrupted.
"""

import json
import os
import queue
import socket
import sys
import threading
import time
import traceback
from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import boomspec
from boomspec.core import errors
from boomspec.core.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_RUN_FAILED, BoomspecError, redact
from boomspec.core.graph import TaskGraph
from boomspec.core.graph_file import read_graph
from boomspec.core.identity import digest
from boomspec.core.tasks import Comparison, Report
from boomspec.models.trust import warnings
from boomspec.plan.forecast import expected_seconds
from boomspec.plan.locking import LOCK, record_lock
from boomspec.plan.plan import RunPlan, check_saved, exclude_failed, plan_tasks, read_plan
from boomspec.store import Store, open_store
from runners.executor.remote_run import RunCopy, copied
from runners.executor.tracking import check as check_trackers
from runners.executor.tracking import tracked
from runners.executor.view import view_for
from runners.runtime import environment
from runners.runtime.interrupt import Interrupt
from runners.runtime.job import Outcome
from runners.runtime.journal import Journal, known_failures, last_failures, last_status
from runners.runtime.task_errors import detect_full_disk, survived

if TYPE_CHECKING:
    from runners.cluster.head_watch import RayHead

_POLL_SECONDS = 0.2
_ERROR_LINES = 4  # of an error, in the summary; all of it is in the log


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        with Interrupt() as interrupt, Ray() as ray:
            stages = Stages(interrupt) if options.stages else None
            code = _run(options, interrupt, ray)
            while stages is not None and options.stages and (following := stages.following(code)):
                options = _parser().parse_args(following)
                code = _run(options, interrupt, ray)
            return EXIT_INTERRUPTED if interrupt.requested else code
    except BoomspecError as error:
        return errors.print_error(error)
    except KeyboardInterrupt:  # the second one
        print("killed; the next run continues from the last checkpoints", file=sys.stderr)
        return EXIT_INTERRUPTED


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="python -m runners", description="Run a compiled graph on Ray.")
    parser.add_argument("graph", type=Path, metavar="GRAPH.json")
    parser.add_argument("--store", required=True, help="folder or URL of the artifacts")
    parser.add_argument("--address", help="of a running Ray cluster; by default one is started on this machine")
    parser.add_argument("--insecure", action="store_true", help="also a cluster that asks for no token")
    parser.add_argument("--cpus", type=int, metavar="N", help="CPUs of the cluster that is started here")
    parser.add_argument("--gpus", type=int, metavar="N", help="GPUs of the cluster that is started here")
    parser.add_argument("--plain", action="store_true", help="plain lines instead of the live view")
    parser.add_argument("--plan", type=Path, metavar="PLAN.json", help="a saved plan: run exactly that, or nothing")
    parser.add_argument("--report", action="store_true", help="run nothing, write the report of what the store holds")
    parser.add_argument("--lock", type=Path, metavar="LOCK.json", help="the lock that the graph was compiled with")
    failed = "what failed in that run is not tried"
    parser.add_argument("--failed", type=Path, action="append", default=[], metavar="RUN", help=failed)
    parser.add_argument("--verify", action="store_true", help="compare checksums of the artifacts that are reused")
    parser.add_argument("--stages", action="store_true", help="more graphs follow on standard input")
    return parser


def _run(options: Namespace, interrupt: Interrupt, ray: "Ray") -> int:
    graph, store = read_graph(options.graph), open_store(options.store)
    graph.check_known()
    if not options.report:
        check_trackers(graph.tracking)
        for line in warnings(graph):
            print(f"warning: {line}", file=sys.stderr, flush=True)
    store.check_writable()
    environment.apply(environment.variables(store.root, hub=graph.reads_hub))
    folder = store.run_folder(graph.name, graph.id)
    folder.mkdir(parents=True, exist_ok=True)
    waiting = partial(print, "the store is being cleaned up (boomspec gc); waiting for the end of that", flush=True)
    with (
        store.using(run=None if options.report else folder, waiting=waiting, elsewhere=_warn),
        detect_full_disk(store.root),
        copied(store, folder) as copy,
    ):
        if options.report:
            from runners.report.page import publish_run  # as in `_Run.make_report`

            failures = known_failures(folder.parent) | last_failures(folder)  # its tasks may have run in a set
            print(f"report: {publish_run(graph, store, folder, failures)}")
            return EXIT_OK
        return _Run(options, graph, store, interrupt, ray).to_the_end(copy)


def _warn(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


class Ray(ExitStack):
    """The cluster of this process. It stays connected until the first `connected` that is not to `stay`."""

    def __init__(self) -> None:
        super().__init__()
        self._heads: list[RayHead | None] = []  # the one of the cluster, once it is connected

    @contextmanager
    def connected(self, options: Namespace, *, stay: bool) -> Iterator["RayHead | None"]:
        # Not at the top: Ray takes half a second to import, reads its settings then, and often nothing is to run.
        from runners.cluster.ray_cluster import cluster

        if not self._heads:
            made = cluster(options.address, cpus=options.cpus, gpus=options.gpus, insecure=options.insecure)
            self._heads.append(self.enter_context(made))
        try:
            yield self._heads[0]
        finally:
            if not stay:
                self._heads.clear()
                self.close()


class Stages:
    """The other end of the socket. When it is closed, the run that is at work is interrupted."""

    def __init__(self, interrupt: Interrupt) -> None:
        self._interrupt = interrupt
        self._socket = socket.socket(fileno=os.dup(0))
        with Path(os.devnull).open("rb") as nothing:  # else Ray's processes would keep the socket open
            os.dup2(nothing.fileno(), 0)
        self._lines: queue.SimpleQueue[list[str]] = queue.SimpleQueue()
        threading.Thread(target=self._read, name="stages", daemon=True).start()

    def following(self, code: int) -> list[str] | None:
        """Report the exit code of a graph. Returns the next command line; None after an interrupt."""
        with suppress(OSError):
            self._socket.sendall(f"{code}\n".encode())
        while not self._interrupt.requested:
            with suppress(queue.Empty):
                return self._lines.get(timeout=_POLL_SECONDS)
        return None

    def _read(self) -> None:
        with suppress(OSError), self._socket.makefile("r", encoding="utf-8") as lines:
            for line in lines:
                if (command := json.loads(line)) is None:
                    break
                self._lines.put(command)
        self._interrupt.requested = True


class _Run:
    """One run of one graph: its plan, its journal, and how its tasks ended."""

    def __init__(self, options: Namespace, graph: TaskGraph, store: Store, interrupt: Interrupt, ray: Ray) -> None:
        self.options, self.graph, self.store, self.interrupt, self.ray = options, graph, store, interrupt, ray
        self.started = time.time()
        self.failed = {i: error for folder in options.failed for i, error in last_failures(folder).items()}
        self.plan = exclude_failed(graph, self.planned(), self.failed)
        expected = expected_seconds(graph, self.plan, store) if self.plan.work else {}
        self.view = view_for(len(self.plan.work), expected, plain=options.plain)
        self.journal = Journal(store.run_folder(graph.name, graph.id), graph, self.view.event)
        self.outcomes: dict[str, Outcome] = {}

    def planned(self) -> RunPlan:
        """What is needed now, or a saved plan as long as it holds. Raises BoomspecError where it does not."""
        if (file := self.options.plan) is None:
            return plan_tasks(self.graph, self.store, checksums=self.options.verify)
        saved = read_plan(file)
        if saved.graph.id != self.graph.id or saved.store != self.store.address:
            raise BoomspecError(f"{file}: is a plan of another graph or for another store")
        check_saved(saved, file)
        return saved.plan

    def to_the_end(self, copy: RunCopy | None) -> int:
        """Run the tasks, make the report, write down how it ended. Returns the exit code."""
        graph, plan, journal = self.graph, self.plan, self.journal
        if copy is not None:
            journal.notes_failures_of(copy.failures)
        journal.event("run_started", tasks=len(plan.work), version=boomspec.__version__)
        lock = None if self.options.lock is None else self.options.lock.absolute()
        if plan.work or not (journal.folder / LOCK).is_file():  # a run that has nothing to do uses nothing
            record_lock(graph, self.store, journal.folder, used=lock)
        # Ray's workers import from the driver's working folder first: a person's rich.py must not be found there.
        os.chdir(journal.folder)
        # What they read is gone, or failed in an earlier run.
        for i in (blocked := plan.ids("blocked")):
            name, is_first = graph.nodes[i].name, not any(n in blocked for n in graph.waits_for(i))
            outcome = Outcome(name, "blocked", redact(plan.steps[i].reason), cause=name if is_first else "")
            self.outcomes[i] = replace(outcome, state="failed") if is_first and i in self.failed else outcome
        if plan.work:
            counts = f"{len(plan.ids('run'))} tasks to run, {len(plan.ids('reuse'))} artifacts reused"
            print(f"{counts}; starting Ray", flush=True)
            with self.view:
                self.outcomes |= self.run_tasks()
            with survived("lock.json", _warn, journal.folder):
                record_lock(graph, self.store, journal.folder, used=lock)  # now the rows are known
        elif not self.outcomes:
            tasks = [(node.task.kind, node.id) for node in graph.nodes.values()]
            present = len(self.store.records(tasks, unread={}))
            everything = f"{present} artifacts" if present == len(tasks) else f"{len(graph.targets)} results"
            print(f"nothing to do: all {everything} are in the store")
        interrupted = any(outcome.state == "interrupted" for outcome in self.outcomes.values())
        targets = {(graph.nodes[i].task.kind, i) for i in graph.targets}
        complete = targets <= self.store.records(targets, unread={}).keys() and not self.options.failed
        report = None
        if not interrupted and any(isinstance(n.task.record, Report | Comparison) for n in graph.nodes.values()):
            page, last = journal.folder / "report" / "report.html", last_status(journal.folder)
            current = last.get("state") == "finished" and last.get("spec") == digest(graph.spec)
            # Nothing may have happened since the report was made that is there.
            report = page if not self.outcomes and current and page.is_file() else self.make_report()
            complete = complete and report is not None
        code = EXIT_INTERRUPTED if interrupted else EXIT_OK if complete else EXIT_RUN_FAILED
        self.finish(code, report)
        if copy is not None:
            print(f"the same at: {copy.url}", flush=True)
        return code

    def run_tasks(self) -> dict[str, Outcome]:
        try:
            with self.ray.connected(self.options, stay=self.options.stages) as head:
                from runners.executor.executor import run_tasks  # imports Ray, which reads its settings then

                self.interrupt.arm()
                journal, view, interrupt = self.journal, self.view, self.interrupt
                run = partial(run_tasks, self.graph, self.store, plan=self.plan, checksums=self.options.verify)
                with tracked(self.graph, self.store, journal) as tracking:
                    outcomes = run(journal=journal, view=view, interrupt=interrupt, tracking=tracking, head=head)
                    states = {outcome.state for outcome in outcomes.values()}
                    ended = "failed" if states & {"failed", "blocked"} else "finished"
                    tracking.state = "interrupted" if "interrupted" in states else ended
                return outcomes
        except BoomspecError as error:
            self.journal.event("run_finished", state="failed", error=str(error))
            raise

    def make_report(self) -> Path | None:
        """Make the run folder's report; None where that fails, which is printed."""
        # Not at the top: its libraries are those of pages, which a run that is interrupted has no need of.
        from runners.report.page import publish_run

        failures = {i: one.error for i, one in self.outcomes.items() if one.state in ("failed", "blocked")}
        try:
            return publish_run(self.graph, self.store, self.journal.folder, failures)
        except Exception as error:
            log = self.journal.log("report")
            with survived(log.name, _warn, self.journal.folder):
                log.write_text(redact(traceback.format_exc()), encoding="utf-8")
            print(f"the report could not be made: {errors.describe(error)}\n  log: {log}", file=sys.stderr)
            return None

    def finish(self, code: int, report: Path | None) -> None:
        """Write how the run ended, and print it."""
        graph, outcomes = self.graph, self.outcomes
        states = {i: "reused" if step.action == "reuse" else step.action for i, step in self.plan.steps.items()}
        states |= {i: outcome.state for i, outcome in outcomes.items()}
        counts = Counter(states.values())
        state = {EXIT_OK: "finished", EXIT_INTERRUPTED: "interrupted"}.get(code, "failed")
        tasks = {
            i: {"name": node.name, "kind": node.task.kind, "state": states[i]}
            | ({"seconds": round(outcomes[i].seconds, 1), "error": outcomes[i].error} if i in outcomes else {})
            | ({"same_as": outcomes[i].same_as} if i in outcomes and outcomes[i].same_as else {})
            for i, node in graph.nodes.items()
        }
        about = {"graph": graph.id, "name": graph.name, "spec": digest(graph.spec), "state": state}
        seconds, page = round(time.time() - self.started, 1), None if report is None else str(report)
        self.journal.status(about | {"seconds": seconds, "counts": dict(counts), "tasks": tasks, "report": page})
        self.journal.event("run_finished", state=state, counts=dict(counts))
        print("\n".join(self.summary(counts, report)), flush=True)

    def summary(self, counts: Counter[str], report: Path | None) -> Iterator[str]:
        shown = ["reused", "made", "failed", "blocked"] + ["interrupted"] * bool(counts["interrupted"])
        yield "  ".join(f"{name} {counts[name]}" for name in shown)
        if same := sum(bool(outcome.same_as) for outcome in self.outcomes.values()):
            yield f"not computed again, for their inputs are the same byte for byte: {same} of those reused"
        for task_id, outcome in self.outcomes.items():
            if outcome.state in ("failed", "blocked") and outcome.cause == outcome.name:
                first, *more = outcome.error.splitlines()[:_ERROR_LINES] or ["no message"]
                yield f"{outcome.state}: {outcome.name}: {first}"
                yield from (f"  {line}" for line in more)
                if (log := self.journal.log(task_id)).exists():
                    yield f"  log: {log}"
        if counts["interrupted"]:
            yield "interrupted: the same command continues from here"
        if report is not None:
            with suppress(OSError):  # of an earlier boomspec's report there is none
                yield "\n" + (report.parent / "summary.txt").read_text(encoding="utf-8")
            yield f"report: {report}"
