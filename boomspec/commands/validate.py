"""`boomspec validate`: check a spec without reading data or asking the network."""

from __future__ import annotations

import json
from pathlib import Path

import click

from boomspec.commands.shared import json_option, spec_argument
from boomspec.compile import check_spec
from boomspec.spec import load_spec


@click.command("validate")
@spec_argument
@json_option
def command(spec: Path, as_json: bool) -> None:
    """Check a spec: every problem at once, each with its place. Reads no data and asks no network."""
    file = load_spec(spec)
    family = check_spec(file)
    if as_json:
        click.echo(json.dumps({"valid": True, "teacher_checked": family is not None}))
        return
    click.echo(f"{spec}: valid")
    if family is None:
        click.echo("layers and sizes are not checked: they need a model of the hub or a search (see boomspec plan)")
