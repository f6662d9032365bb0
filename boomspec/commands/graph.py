"""`boomspec graph`: the compiled task graph."""

from __future__ import annotations

from pathlib import Path

import click

from boomspec.commands.shared import compiled_with, spec_argument, store_option
from boomspec.core.files import write_atomically
from boomspec.plan.tables import mermaid
from boomspec.store import Where


@click.command("graph")
@spec_argument
@store_option
@click.option("--format", "form", type=click.Choice(["json", "mermaid"]), default="json", show_default=True)
@click.option("--output", "-o", type=click.Path(path_type=Path, dir_okay=False), help="Write a file instead.")
def command(spec: Path, store: Where | None, form: str, output: Path | None) -> None:
    """Print the compiled task graph; behind a search, what the store's answer leads to.

    \b
    Examples:
      boomspec graph specs/quickstart.yaml --format mermaid
      boomspec graph specs/quickstart.yaml -o graph.json
    """
    compiled, _ = compiled_with(spec, store)
    text = compiled.graph.text().rstrip("\n") if form == "json" else mermaid(compiled.graph)
    if output is None:
        click.echo(text)
    else:
        write_atomically(output, text + "\n")
