"""`boomspec lock`: pin what the names in a spec stand for, or check that they still do."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from boomspec.commands.shared import json_option, spec_argument, store_option
from boomspec.core.errors import EXIT_RUN_FAILED, BoomspecError
from boomspec.plan.lock import Difference, completed, differences, drifts, lock_path
from boomspec.plan.spec_lock import Standing, drift_lines, lock_now, required_lock
from boomspec.store import Where

OUTPUT_SCHEMA_VERSION = 1
_NO_ANSWER = "The hub gave no answer, so this is what the local cache and the lock know: "


@click.command("lock")
@spec_argument
@store_option
@click.option("--check", is_flag=True, help="Write nothing; exit 1 where what was locked has drifted, and say what.")
@click.option("--ignore-packages", is_flag=True, help="With --check: whatever versions of packages are installed here.")
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
        required_lock(spec)  # before the work of finding out how things stand
    standing = lock_now(spec, store)
    if check:
        _check(place, standing, packages=not ignore_packages, as_json=as_json)
    else:
        _write(place, standing, as_json=as_json)


def _check(place: Path, standing: Standing, *, packages: bool, as_json: bool) -> None:
    assert standing.locked is not None
    found = drifts(standing.locked, standing.now, packages=packages)
    if as_json:
        answer = {"holds": not found, "drifted": _plain(found), "hub": standing.silence}
        click.echo(json.dumps({"schema": OUTPUT_SCHEMA_VERSION, "lock": str(place), **answer}, indent=2))
    else:
        click.echo(f"{place}: {'drifted' if found else 'holds'}")
        for line in drift_lines(found):
            click.echo(f"  {line}")
        if standing.silence is not None:
            click.echo(_NO_ANSWER + standing.silence)
    sys.exit(EXIT_RUN_FAILED if found else 0)


def _write(place: Path, standing: Standing, *, as_json: bool) -> None:
    lock = standing.now if standing.locked is None else completed(standing.now, standing.locked)
    changes = [] if standing.locked is None else differences(standing.locked, lock)
    written = standing.locked is None or bool(changes)
    if written:
        lock.write(place)
    if as_json:
        answer = {"written": written, "changed": _plain(changes), "hub": standing.silence}
        click.echo(json.dumps({"schema": OUTPUT_SCHEMA_VERSION, "lock": str(place), **answer}, indent=2))
        return
    done = "written" if standing.locked is None else "changed" if changes else "unchanged"
    click.echo(f"{place}: {done}")
    for line in drift_lines(changes) if standing.locked is not None else _contents(lock.model_dump()):
        click.echo(f"  {line}")
    for line in _unknown(lock.model_dump(), standing.silence):
        click.echo(line)


def _contents(lock: dict[str, Any]) -> Iterator[str]:
    """What a lock pins, in a few lines."""
    for name, model in lock["models"].items():
        yield f"model {name}: {_commit(model['revision'])}{len(model['files'])} files"
    for name, commit in lock["datasets"].items():
        yield f"data set {name}: {commit[:12] if commit else 'commit unknown'}"
    for name, text in lock["texts"].items():
        yield f"text {name}: {len(text['files'])} files"
    for name, task in lock["tasks"].items():
        yield f"lm-eval task {name}: {task['sha256'][:12]} of {task['origin']}"
    for streams in lock["rows"].values():
        yield "rows: not read yet" if streams is None else f"rows: {streams['train']['documents']:,} to train on"
    yield f"{len(lock['packages'])} packages"


def _unknown(lock: dict[str, Any], silence: str | None) -> Iterator[str]:
    """What a lock does not pin, and what would."""
    if None in lock["rows"].values():
        yield "The rows are known when a run has read them: call this again after it."
    if "torch" not in lock["packages"]:
        yield "What runs a graph is not installed here, so its packages are not locked: call this again where it is."
    if silence is not None:
        yield _NO_ANSWER + silence


def _commit(revision: str | None) -> str:
    return "" if revision is None else f"commit {revision[:12]}, "


def _plain(found: list[Difference]) -> list[dict[str, Any]]:
    return [{"field": list(d.path), "locked": d.before, "now": d.after} for d in found]
