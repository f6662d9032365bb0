"""`boomspec export`: sizes of a run as ordinary Hugging Face folders, which `runners.cli.export` writes."""

import json
import sys
from pathlib import Path

import click

from boomspec.commands.shared import json_option, offered, store_option, wait_for
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
    """Write one SIZE of RUN (a spec or the folder of a run) into FOLDER, as a Hugging Face model with a model card.

    SIZE: student, teacher, or 24 layers, 3B, 80%, 6GiB (the largest size not above it; the spec need not list it).
    all: every size, each into a folder of its own below FOLDER.

    \b
    Examples:
      boomspec export specs/quickstart.yaml '6 layers' model
      boomspec export specs/quickstart.yaml all models
    """
    finished, every = open_run(run, store), size == "all"
    members = finished.every() if every else (finished.member(size),)
    options = {"plan": None if every else members[0].to_json()["plan"], "force": force, "json": as_json}
    options |= {"store": finished.store.address, "folder": folder.absolute()}
    if code := wait_for("runners.cli.export", finished.graph, **options):
        sys.exit(code)
    lineage = finished.lineage()
    written = {folder / folder_name(lineage, member) if every else folder: member for member in members}
    if as_json:
        listed = [{"folder": str(path.absolute()), **member.to_json()} for path, member in written.items()]
        click.echo(json.dumps(listed if every else listed[0]))
        return
    for path, member in written.items():
        click.echo(f"{path}: {member.layers} layers, {member.parameters:,} parameters, {compact_plan(member.plan)}")
