"""`boomspec init`, `graph` and `schema`: write a spec, print what it becomes, and what it may hold.

`init` starts from a template of `boomspec/templates`, each of which is a valid spec.
"""

import os
from collections.abc import Collection
from pathlib import Path

import click

from boomspec.commands.fitted import fitted
from boomspec.commands.options import json_option, offered, spec_argument, store_option, warn
from boomspec.commands.presets import LIST, PRESETS, SHORT, listing, preset_called, with_value
from boomspec.commands.shared import compiled_with, unchecked
from boomspec.compile.check import check_experiments
from boomspec.core.errors import BoomspecError, did_you_mean
from boomspec.core.files import write_atomically
from boomspec.core.graph import TaskGraph
from boomspec.core.json_text import json_text
from boomspec.spec.document import parse_document
from boomspec.spec.json_schema import json_schema
from boomspec.spec.spec_file import Entry
from boomspec.spec.yaml_writer import scalar
from boomspec.store import Where

# The options that each template takes.
TEMPLATES = {"quickstart": ("name",), "hub": ("name", "teacher"), "student": ("name", "teacher", "student")}
_FOLDER = Path(__file__).parent.parent / "templates"
_SCHEMA_FILE = "boomspec.schema.json"


@click.command("init")
@click.argument("places", nargs=-1, metavar="[FOLDER or FILE]")
@click.option(
    "--template",
    metavar="NAME",
    shell_complete=offered("templates"),
    help=f"{', '.join(TEMPLATES)}. Default: by --teacher and --student.",
)
@click.option(
    "--preset",
    metavar="NAME",
    shell_complete=offered("presets"),
    help=f"A published recipe instead: {', '.join([*SHORT, *PRESETS])}. list: say what they are.",
)
@click.option("--name", help="Name of the experiment. Default: of the file, else of the template.")
@click.option("--teacher", metavar="ID", help="Hub id or folder of the teacher.")
@click.option(
    "--data",
    multiple=True,
    metavar="FILES",
    help="With the folder of a teacher: files, a folder or a pattern of text, which the numbers are fitted to.",
)
@click.option("--student", metavar="ID", help="Hub id or folder of a student that is distilled already.")
@click.option("--schema", is_flag=True, help="Also write the JSON Schema beside it, for an editor.")
@click.option("--force", is_flag=True, help="Replace files that exist.")
@json_option
def init(
    places: tuple[str, ...],
    template: str | None,
    data: tuple[str, ...],
    preset: str | None,
    name: str | None,
    schema: bool,
    force: bool,
    as_json: bool,
    **models: str | None,
) -> None:
    """Write a first spec, with comments: into FILE, or into FOLDER (default: this one) under its name.

    quickstart trains its own small teacher: minutes on a laptop, no download. hub: a teacher that exists, one GPU.
    student: teacher and student both exist, nothing is trained. A preset is a whole recipe, with the numbers of the
    paper that it is from. With --data the numbers fit the teacher, the text and this machine.

    \b
    Examples:
      boomspec init
      boomspec init experiments/mine.yaml --teacher Qwen/Qwen3-4B-Base --schema
      boomspec init --preset boomerang-qwen3-8b
      boomspec init mine.yaml --teacher ./models/mine --data 'texts/*.jsonl'
    """
    if preset == LIST:
        click.echo(json_text({n: p.about for n, p in PRESETS.items()}, indent=2) if as_json else listing())
        return
    named = {section: model for section, model in models.items() if model is not None}
    place, data = _place_and_data(places, data)
    is_file, found = place.suffix in (".yaml", ".yml"), None
    folder = place.parent if is_file else place
    if data:
        _check_fitted(named, template, preset)
        what, template = "teacher", str(models["teacher"])
        found = fitted(template, data, folder, _relative(folder, template))
        base = found.text
    elif preset is None:
        what, template = "template", template or _fitting(named)
        base = _template_text(template, named)
    else:
        if template is not None:
            raise BoomspecError("--preset and --template: one of them")
        what = "preset"
        template, base = _preset_text(preset, named)
    if name is None:
        model = (models["student"] or models["teacher"] or "").rstrip("/").rpartition("/")[2].lower()
        model = model if found is None else Path(template).expanduser().resolve().name.lower()
        name = place.stem if is_file else model or template
    path = place if is_file else place / f"{name}.yaml"
    text = with_value(base, "name: ", scalar(name))
    for section, model in named.items() if found is None else ():
        text = with_value(text, "model: ", scalar(_relative(path.parent, model)), after=f"{section}:")
    if found is not None:
        path.parent.mkdir(parents=True, exist_ok=True)  # "../a.txt" of a folder that is not there is no file
    check_experiments([Entry(parse_document(text, path)).validated()])
    written = path.with_name(_SCHEMA_FILE) if schema else None
    content = json_text(json_schema(), indent=2) + "\n" if schema else ""
    if not force and os.path.lexists(path):
        raise BoomspecError(f"{path} exists already", hint="give another name, or replace it: --force")
    if written and not force and written.exists() and written.read_text(encoding="utf-8") != content:
        raise BoomspecError(f"{written} exists already, with other content", hint="replace it: --force")
    path.parent.mkdir(parents=True, exist_ok=True)
    if written:
        write_atomically(written, content)
    write_atomically(path, f"# yaml-language-server: $schema={_SCHEMA_FILE}\n{text}" if schema else text)
    if as_json:
        fitted_to = {} if found is None else {"data": found.found}
        click.echo(json_text({"spec": str(path), what: template, "schema": written and str(written), **fitted_to}))
        return
    click.echo(f"{path}: written " + (f"from the {what} {template}" if found is None else f"for {found.line()}"))
    if written:
        click.echo(f"{written}: for completion in an editor")
    click.echo(f"next:\n  boomspec plan {path}   shows every size and what a run would do")
    click.echo(f"  boomspec run {path}    runs it")


def _place_and_data(places: tuple[str, ...], data: tuple[str, ...]) -> tuple[Path, tuple[str, ...]]:
    """Where the spec goes, and the text. A shell has made several words of --data texts/*.jsonl: files that exist."""
    more = [name for name in places if data and Path(name).suffix not in (".yaml", ".yml") and Path(name).is_file()]
    rest = [name for name in places if name not in more]
    if len(rest) > 1:
        raise click.UsageError(f"Got unexpected extra argument ({rest[1]})")
    return Path(rest[0] if rest else "."), (*data, *more)


def _check_fitted(named: Collection[str], template: str | None, preset: str | None) -> None:
    others = {"--template": template, "--preset": preset, "--student": "student" in named}
    if other := next((option for option, given in others.items() if given), None):
        raise BoomspecError(f"--data and {other}: one of them", hint="--data writes a spec of its own, for --teacher")
    if "teacher" not in named:
        raise BoomspecError("--data needs --teacher", hint="give the folder of the model that is distilled")


def _fitting(named: Collection[str]) -> str:
    return "student" if "student" in named else "hub" if "teacher" in named else "quickstart"


def _template_text(template: str, named: Collection[str]) -> str:
    if template not in TEMPLATES:
        hint = did_you_mean(template, list(TEMPLATES)) or f"there are {', '.join(TEMPLATES)}"
        raise BoomspecError(f"there is no template '{template}'", hint=hint)
    if surplus := [option for option in named if option not in TEMPLATES[template]]:
        fitting = next(known for known, options in TEMPLATES.items() if surplus[0] in options)
        raise BoomspecError(f"the template {template} names no {surplus[0]}", hint=f"take --template {fitting}")
    return (_FOLDER / f"{template}.yaml").read_text(encoding="utf-8")


def _preset_text(name: str, named: Collection[str]) -> tuple[str, str]:
    """The preset's whole name and its text."""
    whole, preset = preset_called(name)
    text = preset.text()
    if "student" in named or ("teacher" in named and "\n  model: " not in text):
        wrong = "student" if "student" in named else "teacher"
        raise BoomspecError(f"the preset {whole} names no {wrong}", hint="boomspec init --template student, or hub")
    return whole, text


@click.command("graph")
@spec_argument
@store_option
@click.option("--format", "form", type=click.Choice(["json", "mermaid"]), default="json", show_default=True)
@click.option("--output", "-o", type=click.Path(path_type=Path, dir_okay=False), help="Write a file instead.")
def graph(spec: Path, store: Where | None, form: str, output: Path | None) -> None:
    """Print the compiled task graph; with a search in it, what follows from the search's result in the store.

    \b
    Examples:
      boomspec graph specs/quickstart.yaml --format mermaid
      boomspec graph specs/quickstart.yaml -o graph.json
    """
    compiled = compiled_with(spec, store)[0].graph
    warn(unchecked(compiled))
    text = compiled.text().rstrip("\n") if form == "json" else mermaid(compiled)
    if output is None:
        click.echo(text)
    else:
        write_atomically(output, text + "\n")


@click.command("schema")
@click.argument("of", type=click.Choice(["spec", "plan"]), default="spec", metavar="[spec|plan]")
def schema(of: str) -> None:
    """Print the JSON Schema of the spec language, for editors; or of `plan --json`, for programs.

    \b
    Examples:
      boomspec schema > boomspec.schema.json
      boomspec schema plan
    """
    if of == "plan":
        from boomspec.plan.plan_json import plan_schema  # slow to import
    click.echo(json_text(plan_schema() if of == "plan" else json_schema(), indent=2))


def mermaid(graph: TaskGraph) -> str:
    """The graph as a mermaid flow chart."""
    rows = ["flowchart LR"]
    rows += [f'  {source.id[:8]}[/"{source.kind}"/]' for source in graph.sources.values()]
    rows += [f'  {node.id[:8]}["{node.name}"]' for node in graph.nodes.values()]
    for node in graph.nodes.values():
        rows += [f"  {needed[:8]} --> {node.id[:8]}" for needed in dict.fromkeys(node.task.inputs.values())]
        rows += [f"  {first[:8]} -.-> {node.id[:8]}" for first in node.after]
    return "\n".join(rows)


def _relative(folder: Path, model: str) -> str:
    """A model as a spec in `folder` names it. On the command line paths start here, in a spec at its folder."""
    path = Path(model).expanduser()
    if not path.is_dir() or path.is_absolute():
        return model
    relative = os.path.relpath(path.resolve(), folder.resolve())
    return relative if relative.startswith(".") else f"./{relative}"
