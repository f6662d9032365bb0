"""`boomspec init`: write a first spec from a template of `boomspec/templates`, each of which is a valid spec."""

import json
import os
from pathlib import Path

import click

from boomspec.commands.shared import json_option
from boomspec.compile.check import check_experiments
from boomspec.core.errors import BoomspecError, did_you_mean
from boomspec.core.files import write_atomically
from boomspec.spec.document import parse_document
from boomspec.spec.json_schema import json_schema
from boomspec.spec.spec_file import Entry
from boomspec.spec.yaml_writer import scalar

# The options that each template takes.
TEMPLATES = {"quickstart": ("name",), "hub": ("name", "teacher"), "student": ("name", "teacher", "student")}
_FOLDER = Path(__file__).parent.parent / "templates"
_SCHEMA_FILE = "boomspec.schema.json"


@click.command("init")
@click.argument("place", type=click.Path(path_type=Path), default=".", metavar="[FOLDER or FILE]")
@click.option("--template", metavar="NAME", help=f"{', '.join(TEMPLATES)}. Default: by --teacher and --student.")
@click.option("--name", help="Name of the experiment. Default: of the file, else of the template.")
@click.option("--teacher", metavar="ID", help="Hub id or folder of the teacher.")
@click.option("--student", metavar="ID", help="Hub id or folder of a student that is distilled already.")
@click.option("--schema", is_flag=True, help="Also write the JSON Schema beside it, for an editor.")
@click.option("--force", is_flag=True, help="Replace files that exist.")
@json_option
def command(
    place: Path, template: str | None, name: str | None, schema: bool, force: bool, as_json: bool, **models: str | None
) -> None:
    """Write a first spec, with comments: into FILE, or into FOLDER (default: this one) under its name.

    quickstart trains its own small teacher: minutes on a laptop, no download. hub: a teacher that exists, one GPU.
    student: teacher and student both exist, nothing is trained.

    \b
    Examples:
      boomspec init
      boomspec init experiments/mine.yaml --teacher Qwen/Qwen3-4B-Base --schema
    """
    template = template or ("student" if models["student"] else "hub" if models["teacher"] else "quickstart")
    named = {section: model for section, model in models.items() if model is not None}
    if template not in TEMPLATES:
        hint = did_you_mean(template, list(TEMPLATES)) or f"there are {', '.join(TEMPLATES)}"
        raise BoomspecError(f"there is no template '{template}'", hint=hint)
    if surplus := [option for option in named if option not in TEMPLATES[template]]:
        fitting = next(known for known, options in TEMPLATES.items() if surplus[0] in options)
        raise BoomspecError(f"the template {template} names no {surplus[0]}", hint=f"take --template {fitting}")
    is_file = place.suffix in (".yaml", ".yml")
    if name is None:
        model = (models["student"] or models["teacher"] or "").rstrip("/").rpartition("/")[2].lower()
        name = place.stem if is_file else model or template
    path = place if is_file else place / f"{name}.yaml"
    text = _replaced((_FOLDER / f"{template}.yaml").read_text(encoding="utf-8"), "name: ", name)
    for section, model in named.items():
        text = _replaced(text, "model: ", _relative(path.parent, model), after=f"{section}:")
    check_experiments([Entry(parse_document(text, path)).validated()])
    written = path.with_name(_SCHEMA_FILE) if schema else None
    content = json.dumps(json_schema(), indent=2) + "\n" if schema else ""
    if not force and os.path.lexists(path):
        raise BoomspecError(f"{path} exists already", hint="give another name, or replace it: --force")
    if written and not force and written.exists() and written.read_text(encoding="utf-8") != content:
        raise BoomspecError(f"{written} exists already, with other content", hint="replace it: --force")
    path.parent.mkdir(parents=True, exist_ok=True)
    if written:
        write_atomically(written, content)
    write_atomically(path, f"# yaml-language-server: $schema={_SCHEMA_FILE}\n{text}" if schema else text)
    if as_json:
        click.echo(json.dumps({"spec": str(path), "template": template, "schema": written and str(written)}))
        return
    click.echo(f"{path}: written from the template {template}")
    if written:
        click.echo(f"{written}: for completion in an editor")
    click.echo(f"next:\n  boomspec plan {path}   shows every size and what a run would do")
    click.echo(f"  boomspec run {path}    runs it")


def _relative(folder: Path, model: str) -> str:
    """A model as a spec in `folder` names it. On the command line paths start here, in a spec at its folder."""
    path = Path(model).expanduser()
    if not path.is_dir() or path.is_absolute():
        return model
    relative = os.path.relpath(path.resolve(), folder.resolve())
    return relative if relative.startswith(".") else f"./{relative}"


def _replaced(text: str, key: str, value: str, *, after: str = "") -> str:
    """The text with another value in the first line with this key; the comment after it stays in its column."""
    lines = text.splitlines()
    first = lines.index(after) if after else 0
    i = next(i for i in range(first, len(lines)) if lines[i].lstrip().startswith(key))
    old, hash_sign, comment = lines[i].partition("  #")
    new = old[: len(old) - len(old.lstrip())] + key + scalar(value)
    lines[i] = f"{new:{len(old)}}{hash_sign}{comment}" if hash_sign else new
    return "\n".join(lines) + "\n"
