"""`boomspec lock`: pin what the names in a spec stand for, or check that they still stand for it."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from boomspec.commands.shared import json_option, spec_argument, store_option
from boomspec.core.errors import EXIT_RUN_FAILED, BoomspecError
from boomspec.plan.lock import Lock, completed, differences, drifts, lock_path
from boomspec.plan.locking import drift_lines, lock_now, required_lock
from boomspec.store import Where

OUTPUT_SCHEMA_VERSION = 1


@click.command("lock")
@spec_argument
@store_option
@click.option("--check", is_flag=True, help="Write nothing; exit 1 where what was locked has drifted, and show it.")
@click.option("--ignore-packages", is_flag=True, help="With --check: accept any versions of the installed packages.")
@json_option
def command(spec: Path, store: Where | None, check: bool, ignore_packages: bool, as_json: bool) -> None:
    """Pin everything that the names in a spec hide: commits, checksums, rows, lm-eval tasks, package versions.

    \b
    Examples:
      boomspec lock specs/quickstart.yaml
      boomspec lock specs/quickstart.yaml --check
    """
    if ignore_packages and not check:
        raise BoomspecError("--ignore-packages goes with --check", hint="a lock always names its packages")
    place = lock_path(spec)
    if check:
        required_lock(spec)  # before the work of finding out what the names stand for
    lock, before, unreachable = lock_now(spec, store)
    if check and before is not None:
        changes = drifts(before, lock, packages=not ignore_packages)
        answer: dict[str, object] = {"holds": not changes}
        done, lines = "drifted" if changes else "holds", drift_lines(changes)
    else:
        lock = lock if before is None else completed(lock, before)
        changes = [] if before is None else differences(before, lock)
        answer = {"written": before is None or bool(changes)}
        if answer["written"]:
            lock.write(place)
        done = "written" if before is None else "changed" if changes else "unchanged"
        lines = [*_contents(lock)] if before is None else drift_lines(changes)
    if as_json:
        plain = [{"field": list(d.path), "locked": d.before, "now": d.after} for d in changes]
        answer |= {"drifted" if check else "changed": plain, "hub": unreachable}
        click.echo(json.dumps({"schema": OUTPUT_SCHEMA_VERSION, "lock": str(place), **answer}, indent=2))
    else:
        remarks = []
        if not check and None in lock.rows.values():
            remarks.append("The rows are known when a run has read them: call this again after it.")
        if not check and "torch" not in lock.packages:
            remarks.append("What runs a graph is not installed here, so its packages are not locked: lock where it is.")
        click.echo("\n".join([f"{place}: {done}", *(f"  {line}" for line in lines), *remarks]))
        if unreachable is not None:
            click.echo(f"The hub gave no answer, so this is what the local cache and the lock know: {unreachable}")
    sys.exit(EXIT_RUN_FAILED if check and changes else 0)


def _contents(lock: Lock) -> Iterator[str]:
    for name, model in lock.models.items():
        commit = "" if model.revision is None else f"commit {model.revision[:12]}, "
        yield f"model {name}: {commit}{len(model.files)} files"
    for name, revision in lock.datasets.items():
        yield f"data set {name}: {revision[:12] if revision else 'commit unknown'}"
    for name, text in lock.texts.items():
        yield f"text {name}: {len(text.files)} files"
    for name, task in lock.tasks.items():
        yield f"lm-eval task {name}: {task.sha256[:12]} of {task.origin}"
    for streams in lock.rows.values():
        yield "rows: not read yet" if streams is None else f"rows: {streams.train.documents:,} to train on"
    yield f"{len(lock.packages)} packages"
