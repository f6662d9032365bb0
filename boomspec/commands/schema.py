"""`boomspec schema`: the JSON Schema of the spec language."""

from __future__ import annotations

import json

import click

from boomspec.language.schema import json_schema


@click.command("schema")
def command() -> None:
    """Print the JSON Schema of the spec language, for editors.

    \b
    Example:
      boomspec schema > boomspec.schema.json
    """
    click.echo(json.dumps(json_schema(), indent=2))
