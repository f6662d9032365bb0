"""`boomspec validate`, `graph` and `schema`: check a spec, print its task graph, print the JSON Schemas."""

import json
from pathlib import Path

import click

from boomspec.commands.shared import compiled_with, json_option, spec_argument, store_option, warn
from boomspec.compile.check import check_experiments
from boomspec.core.files import write_atomically
from boomspec.core.graph import TaskGraph
from boomspec.models.trust import asked_for
from boomspec.spec.experiments import load_experiments
from boomspec.store import Where


@click.command("validate")
@spec_argument
@json_option
def validate(spec: Path, as_json: bool) -> None:
    """Check a spec and all its experiments, and show every problem at its line. Reads no data and uses no network.

    \b
    Examples:
      boomspec validate specs/quickstart.yaml
      boomspec validate specs/quickstart.yaml --json
    """
    files = load_experiments(spec)
    checked = all(family is not None for family in check_experiments(files))
    models = (file.spec.model_dump(include={"teacher", "student"}) for file in files)
    warn(line for asked in models for line in asked_for(asked))
    if as_json:
        labels = [file.label for file in files]
        click.echo(json.dumps({"valid": True, "teacher_checked": checked, "experiments": labels}))
        return
    click.echo(f"{spec}: valid" + (f", {len(files):,} experiments" if len(files) > 1 else ""))
    if not checked:
        click.echo("layers and sizes are not checked: they need a model of the hub or a search (see boomspec plan)")


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
        from boomspec.plan.plan_json import plan_schema as printed  # slow to import
    else:
        from boomspec.spec.json_schema import json_schema as printed
    click.echo(json.dumps(printed(), indent=2))


def mermaid(graph: TaskGraph) -> str:
    """The graph as a mermaid flow chart."""
    rows = ["flowchart LR"]
    rows += [f'  {source.id[:8]}[/"{source.kind}"/]' for source in graph.sources.values()]
    rows += [f'  {node.id[:8]}["{node.name}"]' for node in graph.nodes.values()]
    for node in graph.nodes.values():
        rows += [f"  {needed[:8]} --> {node.id[:8]}" for needed in dict.fromkeys(node.task.inputs.values())]
        rows += [f"  {first[:8]} -.-> {node.id[:8]}" for first in node.after]
    return "\n".join(rows)
