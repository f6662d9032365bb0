"""`python -m runners.cli.submit ACTION`: give a compiled graph to a cluster, and look after it there.

    submit GRAPH.json --store STORE --lock LOCK.json    status [ID]    logs ID [--follow]    stop ID

A graph that is at work on the cluster, for the same store, is not submitted twice. Exit codes are those of a run.
"""

import argparse
import json
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boomspec
from boomspec.core.errors import EXIT_INTERRUPTED, EXIT_OK, BoomspecError, print_error, redact
from boomspec.core.graph import TaskGraph, check_secrets
from boomspec.core.graph_file import read_graph
from boomspec.core.sizes import shown_bytes
from boomspec.core.tasks import Comparison, Report
from boomspec.plan.demand import local_paths
from boomspec.store import is_url
from runners.cluster import job_server as jobs
from runners.cluster.bundle import Bundle, requirements, write_bundle
from runners.cluster.job_server import Submission

_NAMED = 8  # paths that a warning lists
_STOP_SECONDS = 90  # Ray's own three are too few for tasks to write their checkpoints


def main(arguments: list[str] | None = None) -> int:
    description = "Jobs on a Ray cluster. Options as of boomspec submit, whose --help says more."
    parser = argparse.ArgumentParser(prog="python -m runners.cli.submit", description=description)
    actions = parser.add_subparsers(dest="action", required=True)
    made = {name: actions.add_parser(name) for name in ("submit", "status", "logs", "stop")}
    for action in made.values():
        action.add_argument("--address", required=True, metavar="URL", help="of the job server: http://head:8265")
        action.add_argument("--insecure", action="store_true")
        action.add_argument("--json", action="store_true")
    made["status"].add_argument("id", nargs="?", metavar="ID")
    made["logs"].add_argument("id", metavar="ID")
    made["logs"].add_argument("--follow", action="store_true")
    made["stop"].add_argument("id", metavar="ID")
    submit = made["submit"]
    submit.add_argument("graph", type=Path, metavar="GRAPH.json")
    submit.add_argument("--store", required=True, help="of the artifacts, as the cluster sees it")
    submit.add_argument("--lock", type=Path, required=True, metavar="LOCK.json")
    submit.add_argument("--python")
    submit.add_argument("--env", action="append", default=[], metavar="NAME")
    for flag in ("store-is-local", "pip", "verify", "wait"):  # the first: named relative to a folder of this machine
        submit.add_argument(f"--{flag}", action="store_true")
    options = parser.parse_args(arguments)
    try:
        if options.action == "submit":
            return _submit(options)
        client, _ = jobs.connect(options.address.rstrip("/"), insecure=options.insecure)
        return {"status": _status, "logs": _logs, "stop": _stop}[options.action](client, options)
    except BoomspecError as error:
        return print_error(error, as_json=options.json)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of the output is gone, as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python fails again, at its end
        return EXIT_INTERRUPTED


def _submit(options: argparse.Namespace) -> int:
    graph = read_graph(options.graph)
    # Before connecting: an open cluster takes the token out of the environment.
    check_secrets(options.graph.read_text(encoding="utf-8"))
    client, is_open = jobs.connect(options.address.rstrip("/"), insecure=options.insecure)
    out = sys.stderr if options.json else sys.stdout
    here = jobs.head_is_here(client)
    for line in _warnings(graph, options, is_open=is_open, here=here):
        print(f"warning: {line}", file=sys.stderr)
    known = jobs.submissions(client)
    same = [job for job in known if job.graph == graph.id and job.store == options.store]
    if running := next((job for job in same if job.at_work), None):
        print(f"this is at work already, as {running.id}; nothing was submitted", file=out)
        return _after(client, options, graph, running, size=None)
    prefix = f"{graph.name}-{graph.id[:8]}-"
    own = re.compile(re.escape(prefix) + r"(\d+)")
    number = 1 + max((int(found[1]) for job in known if (found := own.fullmatch(job.id))), default=0)
    # With --pip it is that of the environment which Ray makes, first on the path.
    python = options.python or (sys.executable if here and not options.pip else "python")
    # -P keeps the driver's working folder out of the way of imports.
    command = [python, "-P", "-m", "runners", "graph.json", "--store", options.store, "--lock", "lock.json"]
    command += ["--address", "auto", "--plain"] + ["--insecure"] * is_open + ["--verify"] * options.verify
    with tempfile.TemporaryDirectory(prefix="boomspec-") as folder:
        bundle = write_bundle(Path(folder), graph=options.graph, lock=options.lock)
        print(f"{shown_bytes(bundle.size)} to send: both packages, {len(graph.nodes)} tasks, the lock", file=out)
        about = {"boomspec": boomspec.__version__, "name": graph.name, "graph": graph.id, "store": options.store}
        entry, env, name = shlex.join(command), _environment(graph, bundle, options), f"{prefix}{number}"
        job = jobs.submit(client, submission_id=name, entrypoint=entry, runtime_env=env, metadata=about)
    return _after(client, options, graph, job, size=bundle.size)


def _after(client: Any, options: argparse.Namespace, graph: TaskGraph, job: Submission, *, size: int | None) -> int:
    """Say what was submitted and how to go on, or follow it to its end."""
    if options.wait:
        print(f"{job.id}: following it; Ctrl-C leaves it at work", file=sys.stderr)
        code = _follow(client, options, job, graph.id)
        reports = any(isinstance(node.task.record, Report | Comparison) for node in graph.nodes.values())
        if code == EXIT_OK and not options.json and is_url(job.store) and reports:
            print(f"report: {job.run_folder}/report/report.html")
            print(f"  boomspec report SPEC --store {job.store} writes it here")
        return code
    commands = (f"status {job.id}", f"logs {job.id} --follow", f"stop {job.id}")
    lines = [f"  boomspec {command} --address {options.address}" for command in commands]
    text = "\n".join([f"submitted {job.id}" if size is not None else f"at work: {job.id}", *lines])
    return _show(options, {**job.to_json(), "graph": graph.id, "bundle_bytes": size}, text)


def _follow(client: Any, options: argparse.Namespace, job: Submission, graph: str) -> int:
    stream = sys.stderr if options.json else sys.stdout
    try:
        ended = jobs.follow(client, job.id, lambda text: print(text, end="", file=stream, flush=True))
    except KeyboardInterrupt:
        print(f"\n{job.id} goes on; boomspec logs {job.id} --follow comes back to it", file=sys.stderr)
        raise
    _show(options, {**ended.to_json(), "graph": graph}, f"{ended.id}: {ended.state}")
    if ended.failure_hint is not None:
        print(f"{redact(ended.message)}\n  hint: {ended.failure_hint}", file=sys.stderr)
    return ended.code


def _status(client: Any, options: argparse.Namespace) -> int:
    if options.id is not None:
        job = jobs.chosen(client, options.id)
        far = jobs.progress(client, job)
        return _show(options, job.to_json() | {"progress": far}, "\n".join(jobs.about(job, far)))
    found = jobs.submissions(client)
    progress = {job.id: jobs.progress(client, job) for job in found}
    width = max((len(job.id) for job in found), default=0)
    rows = [f"{job.id:{width}}  {job.state:9}  {job.times}  {jobs.shown_progress(progress[job.id])}" for job in found]
    nothing = f"boomspec has submitted nothing to {options.address}"
    data = {"jobs": [job.to_json() | {"progress": progress[job.id]} for job in found]}
    return _show(options, data, "\n".join(row.rstrip() for row in rows) or nothing)


def _logs(client: Any, options: argparse.Namespace) -> int:
    job = jobs.chosen(client, options.id)
    if options.follow:
        return _follow(client, options, job, job.graph)
    text = jobs.log(client, job.id)
    print(json.dumps({"id": job.id, "log": text}, indent=2) if options.json else text, end="")
    return EXIT_OK


def _stop(client: Any, options: argparse.Namespace) -> int:
    job = jobs.chosen(client, options.id)
    ended = jobs.stop(client, job)
    before = f"{ended.id} had ended already: {ended.state}"
    now = f"{ended.id}: {ended.state}; submitting it again goes on from the last checkpoints"
    return _show(options, ended.to_json(), now if job.at_work else before)


def _environment(graph: TaskGraph, bundle: Bundle, options: argparse.Namespace) -> dict[str, Any]:
    """Ray's runtime environment. All who have the cluster's token can read it: only named variables are in it."""
    variables = {"PYTHONUNBUFFERED": "1", "RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_SECONDS)}
    for name in options.env:
        if name.startswith("RAY_AUTH_"):
            raise BoomspecError(f"--env {name}: the cluster has it already", hint="leave it out")
        if name not in os.environ:
            raise BoomspecError(f"--env {name}: there is no such variable here", hint=f"export {name}=...")
        variables[name] = os.environ[name]
    packages = {"pip": requirements(options.store, trackers=graph.tracking)} if options.pip else {}
    modules = [str(package) for package in bundle.packages]
    return {"working_dir": str(bundle.job), "py_modules": modules, "env_vars": variables, **packages}


def _warnings(graph: TaskGraph, options: argparse.Namespace, *, is_open: bool, here: bool) -> Iterator[str]:
    if is_open:
        yield f"the cluster at {options.address} asks for no token: whoever reaches it owns it"
    if options.env:
        yield f"{', '.join(options.env)}: whoever may ask this cluster for its jobs can read the values"
    if here:
        return
    if options.store_is_local:
        message = f"the store {options.store} was named as a folder of this machine, and the cluster is elsewhere"
        hint = "give an absolute path that every machine of the cluster has: --store /shared/boomspec-store"
        raise BoomspecError(message, hint=hint)
    if not is_url(options.store) and (paths := list(local_paths(graph))):
        more = f", and {len(paths) - _NAMED} more" if len(paths) > _NAMED else ""
        yield f"every machine of the cluster must have, at the same place: {', '.join(paths[:_NAMED])}{more}"


def _show(options: argparse.Namespace, data: dict[str, Any], text: str) -> int:
    print(json.dumps(data, indent=2) if options.json else text)
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
