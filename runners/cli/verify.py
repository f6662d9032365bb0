"""`python -m runners.cli.verify GRAPH.json --store DIR`: make the tasks of a finished run again, and compare.

Every task is repeated on the ORIGINAL's inputs, in a scratch store. So one that differs is itself not repeatable,
whatever came before it; where every task agrees, the whole run does. All of them may run at the same time, and
what has been compared is deleted. `--end-to-end` builds on the repeated inputs instead. A task gets the threads, the
micro batch and the other settings that its artifact was made with. The original store is only read.

Exit codes: 0 the same, 1 a task differs, 2 something could not be compared, 130 interrupted.
"""

import math
import sys
from argparse import ArgumentParser, Namespace
from contextlib import chdir, nullcontext, redirect_stdout
from dataclasses import replace
from pathlib import Path

from boomspec.core.errors import EXIT_INTERRUPTED, BoomspecError, print_error
from boomspec.core.graph import Node, TaskGraph
from boomspec.core.graph_file import read_graph
from boomspec.core.json_text import json_text
from boomspec.plan.plan import RunPlan, Step
from boomspec.store import Store, open_store
from runners.executor.view import view_for
from runners.runtime import environment
from runners.runtime.interrupt import Interrupt
from runners.runtime.journal import Event, Journal
from runners.verify.choose import as_it_was_made, check_originals, choose, scratch_store
from runners.verify.compare import Checked, compare, tolerance_of
from runners.verify.text import exit_code, show, to_json


def main(arguments: list[str] | None = None) -> int:
    parser = ArgumentParser(
        prog="python -m runners.cli.verify", description="What boomspec verify starts; see its --help."
    )
    parser.add_argument("graph", type=Path, metavar="GRAPH.json")
    parser.add_argument("--store", required=True, help="folder or URL of the original artifacts")
    parser.add_argument("--scratch", type=Path, metavar="DIR")
    parser.add_argument("--tolerance", type=float, metavar="T")
    parser.add_argument("--address")
    parser.add_argument("--cpus", type=int, metavar="N", help="CPUs of the cluster that is started here")
    for several in ("task", "kind"):
        parser.add_argument(f"--{several}", action="append", default=[], metavar=several.upper())
    for flag in ("keep", "end-to-end", "insecure", "plain", "json"):
        parser.add_argument(f"--{flag}", action="store_true")
    options = parser.parse_args(arguments)
    try:
        with Interrupt() as interrupt:
            return _verify(options, interrupt)
    except BoomspecError as error:
        return print_error(error, as_json=options.json)
    except KeyboardInterrupt:  # the second one
        return EXIT_INTERRUPTED


def _verify(options: Namespace, interrupt: Interrupt) -> int:
    if options.tolerance is not None and not 0 <= options.tolerance < math.inf:
        raise BoomspecError(f"a tolerance is a number from 0 on, not {options.tolerance}")
    graph, original = read_graph(options.graph), open_store(options.store)
    nodes = choose(graph, options.task, options.kind, end_to_end=options.end_to_end)
    nodes = [as_it_was_made(node, original) for node in nodes]
    graph = replace(graph, nodes={**graph.nodes, **{node.id: node for node in nodes}})
    with original.using(), redirect_stdout(sys.stderr) if options.json else nullcontext():
        print("comparing the original artifacts with their checksums", flush=True)
        check_originals(graph, original, nodes, interrupt)
        parent = (options.scratch or original.root.parent).absolute()
        with scratch_store(parent, original, keep=options.keep) as scratch:
            checks = _repeat(options, graph, nodes, original, scratch, interrupt)
    if interrupt.requested:
        print("interrupted: nothing was changed", file=sys.stderr)
        return EXIT_INTERRUPTED
    kept = scratch.root if options.keep else None
    if options.json:
        print(json_text(to_json(checks, end_to_end=options.end_to_end, scratch=kept), indent=2))
    else:
        show(checks, end_to_end=options.end_to_end, scratch=kept)
    return exit_code(checks)


def _repeat(
    options: Namespace, graph: TaskGraph, nodes: list[Node], original: Store, scratch: Store, interrupt: Interrupt
) -> list[Checked]:
    """Run `nodes` in the scratch store; compare each with its original when it is done, so that it need not be kept."""
    environment.apply(environment.variables(scratch.root, hub=graph.reads_hub))
    view = view_for(len(nodes), plain=options.plain or options.json)
    checks: list[Checked] = []

    def tolerance(task_id: str) -> float:
        return tolerance_of(graph, task_id) if options.tolerance is None else float(options.tolerance)

    def listen(event: Event) -> None:
        view.event(event)
        if event["event"] == "task_finished":
            node = graph.nodes[event["task"]]
            made_of = [node.id, *(graph.task_inputs(node.id) if options.end_to_end else ())]
            measured = not all(graph.nodes[i].task.record.repeatable for i in made_of)
            checks.append(compare(node, original, scratch, tolerance(node.id), measured=measured))
            if not (options.keep or options.end_to_end):
                scratch.discard(node.task.kind, node.id)

    journal = Journal(scratch.run_folder(graph.name, graph.id), graph, listen)
    plan = RunPlan({node.id: Step("run", "to be verified") for node in nodes})
    reads, named = (None, "repeated") if options.end_to_end else (original, "the original's")
    print(f"{len(nodes)} tasks to repeat on {named} inputs; starting Ray", flush=True)
    if interrupt.requested:
        return []
    # Not at the top, nor another folder than one without modules: as in `runners.cli.run`.
    from runners.cluster.ray_cluster import cluster

    with view, chdir(journal.folder), cluster(options.address, cpus=options.cpus, insecure=options.insecure):
        from runners.executor.executor import run_tasks

        interrupt.arm()
        outcomes = run_tasks(
            graph, scratch, plan=plan, journal=journal, view=view, interrupt=interrupt, reads=reads, anew=True
        )
    failed = {i: outcome.error for i, outcome in outcomes.items() if not outcome.succeeded}
    checks += [Checked(graph.nodes[i], "failed", tolerance(i), error=error) for i, error in failed.items()]
    return sorted(checks, key=lambda check: [*graph.nodes].index(check.node.id))


if __name__ == "__main__":
    sys.exit(main())
