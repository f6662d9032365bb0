"""`boomspec plan`: what a run would do."""

from __future__ import annotations

import json
from pathlib import Path

import click

from boomspec.commands.shared import compiled_with, json_option, spec_argument, store_option
from boomspec.plan import needed
from boomspec.show import plan_json, print_family, print_pending, print_plan
from boomspec.store import Store


@click.command("plan")
@spec_argument
@store_option
@click.option("--verify", is_flag=True, help="Check the stored artifacts' checksums, not only their sizes.")
@json_option
def command(spec: Path, store: Path | None, verify: bool, as_json: bool) -> None:
    """Show what a run would reuse and do, why, and the exact size of every model."""
    compiled, folder = compiled_with(spec, store)
    result = needed(compiled.graph, Store(folder), checksums=verify)
    if as_json:
        click.echo(json.dumps(plan_json(compiled, result), indent=2))
        return
    if compiled.family is not None:
        print_family(compiled.family)
    print_plan(compiled.graph, result, folder)
    if compiled.pending:
        print_pending(compiled)
