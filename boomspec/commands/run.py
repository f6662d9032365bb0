"""`boomspec run`: compile the spec and run its graph; compile and run again after each search."""

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import click

from boomspec.commands import options, shared
from boomspec.core.errors import EXIT_RUN_FAILED, BoomspecError
from boomspec.plan.locking import RunLock
from boomspec.plan.plan import check_saved, is_plan, read_plan
from boomspec.spec.spec_file import NO_PINS
from boomspec.store import Where, open_store

_PROGRAM = 4  # parts of a command line before the arguments: python -P -m runners


@click.command("run")
@options.spec_or_run_argument
@options.store_option
@options.cluster_options
@options.verify_option
@options.plain_option
@options.lock_options
@click.option(
    "--until",
    metavar="KIND",
    shell_complete=options.offered("kinds"),
    help="Only the tasks of a kind, such as distill, and what they need.",
)
def command(
    spec: Path, store: Where | None, locked: bool, ignore_packages: bool, until: str | None, **options: Any
) -> None:
    """Run an experiment. Artifacts in the store are reused, interrupted tasks continue.

    SPEC: a spec, one of its experiments (SPEC#LABEL), a saved plan, a compiled graph, or the folder of a run.

    \b
    Examples:
      boomspec run specs/quickstart.yaml
      boomspec run plan.json             # exactly what boomspec plan --output saved
      boomspec run specs/qwen3-4b.yaml --store /shared/store --address auto
      boomspec run specs/quickstart.yaml --until distill
    """
    if is_plan(spec) and locked:
        raise BoomspecError("--locked goes with a spec: a saved plan has its commits already")
    if is_plan(spec) and until is not None:
        raise BoomspecError("--until goes with a spec: a saved plan is run as it is")
    lock = shared.run_lock(spec, locked=locked, ignore_packages=ignore_packages)
    if is_plan(spec):
        _execute(spec, store, options)
    runners = Runners()
    try:
        _run_all(spec, store, lock, runners, until, **options)
    finally:
        runners.end()


def _run_all(
    spec: Path, store: Where | None, lock: RunLock | None, runners: "Runners", until: str | None, **options: Any
) -> NoReturn:
    done: set[str] = set()
    failed_searches: set[str] = set()
    failed: list[Path] = []  # folders of earlier runs that have failed
    while True:
        pins = lock.pins if lock else NO_PINS
        graph, place, cpus, pending = shared.runnable(spec, store, pins, failed_searches)
        waiting = shared.searches(graph, pending)
        if done & waiting and not failed:
            raise BoomspecError(f"{', '.join(pending)}: has run and found nothing", hint="see its log in the store")
        if done & waiting & failed_searches:
            sys.exit(EXIT_RUN_FAILED)  # every experiment waits for a search that has failed
        if done & waiting:
            failed_searches |= done & waiting  # other experiments go on without what has failed in one
            continue
        if failed_searches:
            shared.say_left_out(spec, graph)
        if until is not None and (not pending or any(node.task.kind == until for node in graph.nodes.values())):
            graph, pending = graph.until(until), ()  # else what comes first is searched for
        if lock is not None:
            graph = lock.hold(graph, place)
        used = lock.place.absolute() if lock else None
        command = shared.runner(graph, place, **options, cpus=cpus, lock=used, failed=tuple(failed))
        code = runners.run(command, reads_hub=graph.reads_hub, last=not pending)
        if code == EXIT_RUN_FAILED and pending:  # what else there is does not depend on what has failed
            failed.append(place.run_folder(graph.name, graph.id))
        elif code or not pending:
            sys.exit(code)
        done |= waiting


class Runners:
    """The process that runs all graphs of a spec, so that Ray starts once (`runners.cli.run`)."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._reads_hub = False

    def run(self, command: list[str], *, reads_hub: bool, last: bool) -> int:
        """Run a graph. Returns its exit code, or that of the process where it has ended."""
        sys.stdout.flush()
        if self._process is not None and (self._process.poll() is not None or self._reads_hub != reads_hub):
            self.end()  # libraries settle whether they may ask the hub when they are imported
        if self._process is None and last:
            # The runners replace this process: the compiler's room never imports theirs, and signals reach them.
            os.execv(sys.executable, command)
        # A terminal's Ctrl-C reaches both processes. What is sent then asks for the same again, and does no harm.
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        for number in before:
            signal.signal(number, lambda *_: self._send(None))
        try:
            if self._process is None:
                self._socket, theirs = socket.socketpair()
                self._answers = self._socket.makefile("r", encoding="utf-8")
                with theirs:
                    self._process = subprocess.Popen([*command, "--stages"], stdin=theirs.fileno())
            else:
                self._send(command[_PROGRAM:] + ["--stages"] * (not last))
            answer = self._answers.readline()
            self._reads_hub = reads_hub
            return int(answer) if answer else self._process.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def end(self) -> None:
        """End the process, which interrupts what it does."""
        if self._process is not None:
            self._answers.close()
            self._socket.close()
            self._process.wait()
            self._process = None

    def _send(self, command: list[str] | None) -> None:
        with suppress(OSError):  # it has ended, as the next read shows
            self._socket.sendall(f"{json.dumps(command, allow_nan=False)}\n".encode())


def _execute(file: Path, store: Where | None, options: dict[str, Any]) -> NoReturn:
    """Run exactly a saved plan. Raises BoomspecError where it no longer holds."""
    saved = read_plan(file)
    place = open_store(saved.store)
    if store is not None and open_store(store).address != place.address:
        raise BoomspecError(f"{file}: the plan is for the store {place.address}", hint="leave out --store")
    saved.graph.check_known()
    check_saved(saved, file)
    if saved.pending:
        click.echo(f"this plan ends after {', '.join(saved.pending)}; plan again for the rest")
    options |= {"plan": file.absolute(), "cpus": saved.cpus, "verify": saved.checksums or options["verify"]}
    command = shared.runner(saved.graph, place, **options)
    sys.stdout.flush()
    os.execv(sys.executable, command)
