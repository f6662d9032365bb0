"""`python -m runners GRAPH.json --store DIR`: run a compiled graph.

Exit codes: 0 every target is in the store, 1 something failed, 2 the input is wrong, 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import boomspec
from boomspec.core.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_RUN_FAILED, BoomspecError, print_error, redact
from boomspec.core.graph import TaskGraph
from boomspec.core.graph_file import read_graph
from boomspec.core.identity import digest
from boomspec.core.tasks import Comparison, Report
from boomspec.models.trust import warnings
from boomspec.plan.graph_lock import LOCK, record_lock
from boomspec.plan.plan import Plan, needed, without
from boomspec.plan.saved import check, read_plan
from boomspec.store import Store, open_store
from runners.cli.stages import Ray, Stages
from runners.executor.remote_run import RunMirror, mirrored
from runners.executor.trackers import check as check_trackers
from runners.executor.tracking import tracked
from runners.executor.view import View, view_for
from runners.runtime import environment
from runners.runtime.disk_full import explained, survived
from runners.runtime.interrupt import Interrupt
from runners.runtime.job import Outcome, describe
from runners.runtime.journal import Journal, known_failures, last_failures, last_status

_ERROR_LINES = 4  # of an error, in the summary; all of it is in the log


def main(arguments: list[str] | None = None) -> int:
    """Run the graph that the command line names; returns the exit code."""
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
        return print_error(error)
    except KeyboardInterrupt:  # the second one
        print("killed; the next run continues from the last checkpoints", file=sys.stderr)
        return EXIT_INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m runners", description="Run a compiled graph on Ray.")
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
    parser.add_argument(
        "--failed", type=Path, action="append", default=[], metavar="RUN", help="what failed in that run is not tried"
    )
    parser.add_argument("--verify", action="store_true", help="compare checksums of the artifacts that are reused")
    parser.add_argument("--stages", action="store_true", help="more graphs follow (see `runners.cli.stages`)")
    return parser


def _run(options: argparse.Namespace, interrupt: Interrupt, ray: Ray) -> int:
    graph, store = read_graph(options.graph), open_store(options.store)
    if not options.report:
        check_trackers(graph.tracking)
        for line in warnings(graph):
            print(f"warning: {line}", file=sys.stderr, flush=True)
    store.check_writable()
    environment.apply(environment.variables(store.root, hub=graph.reads_hub))
    folder = store.run_folder(graph.name, graph.id)
    folder.mkdir(parents=True, exist_ok=True)
    with (
        store.using(run=None if options.report else folder, waiting=_say_waiting, elsewhere=_warn),
        explained(store.root),
        mirrored(store, folder) as mirror,
    ):
        if options.report:
            return _report_only(graph, store)
        return _run_graph(options, graph, store, interrupt, ray, mirror)


def _warn(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _say_waiting() -> None:
    print("the store is being cleaned up (boomspec gc); waiting for the end of that", flush=True)


def _run_graph(
    options: argparse.Namespace,
    graph: TaskGraph,
    store: Store,
    interrupt: Interrupt,
    ray: Ray,
    mirror: RunMirror | None,
) -> int:
    started = time.time()
    plan = _plan(options, graph, store)
    failed = {i: error for folder in options.failed for i, error in last_failures(folder).items()}
    plan = without(graph, plan, failed)
    view = view_for(len(plan.work), plain=options.plain)
    journal = Journal(store.run_folder(graph.name, graph.id), graph, view.event)
    if mirror is not None:
        journal.hears(mirror.failures)
    journal.event("run_started", tasks=len(plan.work), version=boomspec.__version__)
    lock = None if options.lock is None else options.lock.absolute()
    if plan.work or not (journal.folder / LOCK).is_file():  # a run that has nothing to do uses nothing
        record_lock(graph, store, journal.folder, used=lock)
    # Ray's workers import from the driver's working folder first: a person's rich.py must not be found there.
    os.chdir(journal.folder)
    outcomes = _blocked_from_the_start(graph, plan)
    outcomes |= {i: replace(o, state="failed") for i, o in outcomes.items() if i in failed and o.cause == o.name}
    if plan.work:
        print(
            f"{len(plan.ids('run'))} tasks to run, {len(plan.ids('reuse'))} artifacts reused; starting Ray", flush=True
        )
        with view:
            outcomes |= _execute(options, graph, store, ray, plan=plan, journal=journal, view=view, interrupt=interrupt)
        with survived("lock.json", _warn, journal.folder):
            record_lock(graph, store, journal.folder, used=lock)  # now the rows are known
    elif not outcomes:
        print(_nothing_to_do(graph, store))
    failures = {i: outcome.error for i, outcome in outcomes.items() if outcome.state in ("failed", "blocked")}
    interrupted = any(outcome.state == "interrupted" for outcome in outcomes.values())
    targets = {(graph.nodes[i].task.kind, i) for i in graph.targets}
    complete = targets <= store.records(targets, unread={}).keys()
    report = None
    if not interrupted and any(isinstance(n.task.record, Report | Comparison) for n in graph.nodes.values()):
        report = _report_as_it_is(graph, journal, outcomes) or _report(graph, store, journal, failures)
        complete = complete and report is not None
    complete = complete and not options.failed
    code = EXIT_INTERRUPTED if interrupted else EXIT_OK if complete else EXIT_RUN_FAILED
    _finish(graph, plan, outcomes, journal=journal, started=started, code=code, report=report)
    if mirror is not None:
        print(f"the same at: {mirror.url}", flush=True)
    return code


def _plan(options: argparse.Namespace, graph: TaskGraph, store: Store) -> Plan:
    """What to do: what is needed now, or a saved plan as long as it holds. Raises BoomspecError where it does not."""
    if options.plan is None:
        return needed(graph, store, checksums=options.verify)
    saved = read_plan(options.plan)
    if saved.graph.id != graph.id or saved.store != store.address:
        raise BoomspecError(f"{options.plan}: is a plan of another graph or for another store")
    check(saved, options.plan)
    return saved.plan


def _execute(
    options: argparse.Namespace,
    graph: TaskGraph,
    store: Store,
    ray: Ray,
    *,
    plan: Plan,
    journal: Journal,
    view: View,
    interrupt: Interrupt,
) -> dict[str, Outcome]:
    try:
        with ray.connected(options, stay=options.stages) as head:
            from runners.executor.executor import run_tasks

            interrupt.arm()
            with tracked(graph, store, journal) as tracking:
                outcomes = run_tasks(
                    graph,
                    store,
                    plan=plan,
                    checksums=options.verify,
                    journal=journal,
                    view=view,
                    interrupt=interrupt,
                    tracking=tracking,
                    head=head,
                )
                tracking.state = _state(outcomes)
            return outcomes
    except BoomspecError as error:
        journal.event("run_finished", state="failed", error=str(error))
        raise


def _state(outcomes: dict[str, Outcome]) -> str:
    states = {outcome.state for outcome in outcomes.values()}
    return "interrupted" if "interrupted" in states else "failed" if states & {"failed", "blocked"} else "finished"


def _blocked_from_the_start(graph: TaskGraph, plan: Plan) -> dict[str, Outcome]:
    """Outcomes of the tasks that cannot run because something that they read is gone."""
    blocked = plan.ids("blocked")
    return {
        i: Outcome(
            graph.nodes[i].name,
            "blocked",
            redact(plan.steps[i].reason),
            cause="" if any(needed in blocked for needed in graph.waits_for(i)) else graph.nodes[i].name,
        )
        for i in blocked
    }


def _nothing_to_do(graph: TaskGraph, store: Store) -> str:
    present = len(store.records(((node.task.kind, node.id) for node in graph.nodes.values()), unread={}))
    if present == len(graph.nodes):
        return f"nothing to do: all {present} artifacts are in the store"
    return f"nothing to do: all {len(graph.targets)} results are in the store"


def _report_only(graph: TaskGraph, store: Store) -> int:
    from runners.report.page import publish_run  # as in _report

    folder = store.run_folder(graph.name, graph.id)
    failures = known_failures(folder.parent) | last_failures(folder)  # its tasks may have run in a set
    print(f"report: {publish_run(graph, store, folder, failures)}")
    return EXIT_OK


def _report_as_it_is(graph: TaskGraph, journal: Journal, outcomes: dict[str, Outcome]) -> Path | None:
    """The run folder's report, where nothing has happened since it was made."""
    page, last = journal.folder / "report" / "report.html", last_status(journal.folder)
    current = last.get("state") == "finished" and last.get("spec") == digest(graph.spec)
    return page if not outcomes and current and page.is_file() else None


def _report(graph: TaskGraph, store: Store, journal: Journal, failures: dict[str, str]) -> Path | None:
    """Make the run folder's report; None where that fails, which is said."""
    # Not at the top: it draws with matplotlib, which a run that is interrupted has no need of.
    from runners.report.page import publish_run

    try:
        return publish_run(graph, store, journal.folder, failures)
    except Exception as error:
        log = journal.log("report")
        with survived(log.name, _warn, journal.folder):
            log.write_text(redact(traceback.format_exc()), encoding="utf-8")
        print(f"the report could not be made: {describe(error)}\n  log: {log}", file=sys.stderr)
        return None


def _finish(
    graph: TaskGraph,
    plan: Plan,
    outcomes: dict[str, Outcome],
    *,
    journal: Journal,
    started: float,
    code: int,
    report: Path | None,
) -> None:
    """Write how the run ended, and say it."""
    states = {i: "reused" if step.action == "reuse" else step.action for i, step in plan.steps.items()}
    states |= {i: outcome.state for i, outcome in outcomes.items()}
    counts = Counter(states.values())
    state = {EXIT_OK: "finished", EXIT_INTERRUPTED: "interrupted"}.get(code, "failed")
    tasks = {
        i: {"name": graph.nodes[i].name, "kind": graph.nodes[i].task.kind, "state": states[i]}
        | ({"seconds": round(outcomes[i].seconds, 1), "error": outcomes[i].error} if i in outcomes else {})
        | ({"same_as": outcomes[i].same_as} if i in outcomes and outcomes[i].same_as else {})
        for i in graph.nodes
    }
    journal.status(
        {
            "graph": graph.id,
            "name": graph.name,
            "spec": digest(graph.spec),
            "state": state,
            "seconds": round(time.time() - started, 1),
            "counts": dict(counts),
            "tasks": tasks,
            "report": None if report is None else str(report),
        }
    )
    journal.event("run_finished", state=state, counts=dict(counts))
    print("\n".join(_summary(outcomes, counts, journal, report)), flush=True)


def _summary(
    outcomes: dict[str, Outcome], counts: Counter[str], journal: Journal, report: Path | None
) -> Iterator[str]:
    shown = ["reused", "made", "failed", "blocked"] + (["interrupted"] if counts["interrupted"] else [])
    yield "  ".join(f"{name} {counts[name]}" for name in shown)
    if same := sum(bool(outcome.same_as) for outcome in outcomes.values()):
        yield f"not computed again, for their inputs are the same byte for byte: {same} of those reused"
    for task_id, outcome in outcomes.items():
        if outcome.state in ("failed", "blocked") and outcome.cause == outcome.name:
            first, *more = outcome.error.splitlines()[:_ERROR_LINES] or ["no message"]
            yield f"{outcome.state}: {outcome.name}: {first}"
            yield from (f"  {line}" for line in more)
            if journal.log(task_id).exists():
                yield f"  log: {journal.log(task_id)}"
    if counts["interrupted"]:
        yield "interrupted: the same command continues from here"
    if report is not None:
        yield f"report: {report}"
