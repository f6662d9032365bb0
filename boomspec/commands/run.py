"""`boomspec run`: compile, and hand the graph to the runners; once more behind every search."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from boomspec.commands.shared import runnable, runner, spec_argument, store_option, wait
from boomspec.errors import BoomspecError


@click.command("run")
@spec_argument
@store_option
@click.option(
    "--address", help="A running Ray cluster: auto, host:port or ray://host:port. Default: a private local one."
)
@click.option("--verify", is_flag=True, help="Check the checksums of artifacts that are reused.")
@click.option("--plain", is_flag=True, help="Plain lines instead of the live view.")
def command(spec: Path, store: Path | None, address: str | None, verify: bool, plain: bool) -> None:
    """Run an experiment; what is in the store already is reused, what was interrupted goes on."""
    options = (["--address", address] if address else []) + ["--verify"] * verify + ["--plain"] * plain
    done: set[str] = set()
    while True:
        graph, folder, cpus, pending = runnable(spec, store)
        if pending and done.intersection(graph.targets):
            raise BoomspecError(f"{', '.join(pending)}: has run and found nothing", hint="see its log in the store")
        command = runner(graph, folder) + (["--cpus", str(cpus)] if cpus else []) + options
        sys.stdout.flush()
        if not pending:
            # The runners replace this process: the compiler's room never imports theirs, and signals reach them.
            os.execv(sys.executable, command)
        if code := wait(command):
            sys.exit(code)
        done.update(graph.targets)
