"""`boomspec export`: sizes of a run as ordinary Hugging Face folders."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from boomspec.commands.export_size import export_command
from boomspec.commands.shared import json_option, offered, store_option, wait
from boomspec.core.sizes import compact_plan, folder_name
from boomspec.plan.run import open_run
from boomspec.store import Where


@click.command("export")
@click.argument("run", type=click.Path(path_type=Path), shell_complete=offered("runs_and_specs"))
@click.argument("size")
@click.argument("folder", type=click.Path(path_type=Path))
@store_option
@click.option("--force", is_flag=True, help="Replace the model that is in the folder.")
@json_option
def command(run: Path, size: str, folder: Path, store: Where | None, force: bool, as_json: bool) -> None:
    """Write one SIZE of RUN (a spec or a run's folder) into FOLDER, as a Hugging Face model with a model card.

    SIZE: student, teacher, or 24 layers, 3B, 80%, 6GiB (the largest not above is taken; the spec need not list it).
    all: every size, each into a folder of its own below FOLDER.

    \b
    Examples:
      boomspec export specs/quickstart.yaml '6 layers' model
      boomspec export specs/quickstart.yaml all models
    """
    made = open_run(run, store)
    chosen = made.every() if size == "all" else (made.member(size),)
    with export_command(made, None if size == "all" else chosen[0], folder, force=force, as_json=as_json) as command:
        code = wait(command)
    if code:
        sys.exit(code)
    lineage = made.lineage()
    folders = [folder / folder_name(lineage, member) if size == "all" else folder for member in chosen]
    written = [{"folder": str(f.absolute()), **m.to_json()} for f, m in zip(folders, chosen, strict=True)]
    if as_json:
        click.echo(json.dumps(written if size == "all" else written[0]))
        return
    for f, m in zip(folders, chosen, strict=True):
        click.echo(f"{f}: {m.layers} layers, {m.parameters:,} parameters, {compact_plan(m.plan)}")
