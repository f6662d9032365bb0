"""`boomspec schema`: JSON Schemas of what boomspec reads and prints."""

from __future__ import annotations

import json

import click


@click.command("schema")
@click.argument("of", type=click.Choice(["spec", "plan"]), default="spec", metavar="[spec|plan]")
def command(of: str) -> None:
    """Print the JSON Schema of the spec language, for editors; or of `plan --json`, for programs.

    \b
    Example:
      boomspec schema > boomspec.schema.json
      boomspec schema plan
    """
    if of == "plan":
        from boomspec.plan.plan_json import plan_schema

        click.echo(json.dumps(plan_schema(), indent=2))
        return
    from boomspec.spec.json_schema import json_schema

    click.echo(json.dumps(json_schema(), indent=2))
