"""`boomspec init`: a first spec."""

from __future__ import annotations

import json
from pathlib import Path

import click

from boomspec.commands.shared import json_option

TEMPLATES = ("quickstart", "hub", "student")


@click.command("init")
@click.argument("place", type=click.Path(path_type=Path), default=".", metavar="[FOLDER or FILE]")
@click.option(
    "--template",
    metavar="NAME",
    help=f"{', '.join(TEMPLATES)}. Default: quickstart, or the one that --teacher or --student belongs to.",
)
@click.option("--name", help="Name of the experiment. Default: of the file, else of the template.")
@click.option("--teacher", metavar="ID", help="Hub id or folder of the teacher.")
@click.option("--student", metavar="ID", help="Hub id or folder of a student that is distilled already.")
@click.option("--schema", is_flag=True, help="Also write the JSON Schema beside it, for an editor.")
@click.option("--force", is_flag=True, help="Replace a file that is there.")
@json_option
def command(
    place: Path,
    template: str | None,
    name: str | None,
    teacher: str | None,
    student: str | None,
    schema: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Write a first spec, with comments: into FILE, or into FOLDER (default: here) under its name.

    quickstart trains its own small teacher: minutes on a laptop, no download. hub: a teacher that exists, one GPU.
    student: teacher and student both exist, nothing is trained.

    \b
    Examples:
      boomspec init
      boomspec init experiments/mine.yaml --teacher Qwen/Qwen3-4B-Base --schema
    """
    from boomspec.commands.templates import SCHEMA_FILE, first_spec, write_spec

    spec = first_spec(place, template=template, name=name, teacher=teacher, student=student, schema=schema)
    write_spec(spec, schema=schema, force=force)
    if as_json:
        written = str(spec.path.with_name(SCHEMA_FILE)) if schema else None
        click.echo(json.dumps({"spec": str(spec.path), "template": spec.template, "schema": written}))
        return
    click.echo(f"{spec.path}: written from the template {spec.template}")
    if schema:
        click.echo(f"{spec.path.with_name(SCHEMA_FILE)}: for completion in an editor")
    click.echo("next:")
    click.echo(f"  boomspec plan {spec.path}   shows every size and what a run would do")
    click.echo(f"  boomspec run {spec.path}    runs it")
