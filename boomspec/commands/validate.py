"""`boomspec validate`: check a spec without reading data or asking the network."""

from __future__ import annotations

import json
from pathlib import Path

import click

from boomspec.commands.shared import json_option, spec_argument, warn
from boomspec.compile.check import check_experiments
from boomspec.models.trust import asked_for
from boomspec.spec.experiments import load_experiments

_ROLES = ("teacher", "student")


@click.command("validate")
@spec_argument
@json_option
def command(spec: Path, as_json: bool) -> None:
    """Check a spec and all its experiments: every problem at once, at its line. Reads no data and asks no network.

    \b
    Examples:
      boomspec validate specs/quickstart.yaml
      boomspec validate specs/quickstart.yaml --json
    """
    files = load_experiments(spec)
    families = check_experiments(files)
    warn(dict.fromkeys(line for file in files for line in asked_for(file.spec.model_dump(include={*_ROLES}))))
    checked = all(family is not None for family in families)
    if as_json:
        labels = [file.label for file in files]
        click.echo(json.dumps({"valid": True, "teacher_checked": checked, "experiments": labels}))
        return
    click.echo(f"{spec}: valid" + (f", {len(files):,} experiments" if len(files) > 1 else ""))
    if not checked:
        click.echo("layers and sizes are not checked: they need a model of the hub or a search (see boomspec plan)")
