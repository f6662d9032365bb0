"""`boomspec validate`: check a spec. It imports little, for editors call it at every save."""

from pathlib import Path

import click

from boomspec.commands.options import json_option, spec_argument, warn
from boomspec.compile.check import check_experiments
from boomspec.core.json_text import json_text
from boomspec.models.trust import asked_for
from boomspec.spec.experiments import load_experiments


@click.command("validate")
@spec_argument
@json_option
def command(spec: Path, as_json: bool) -> None:
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
        click.echo(json_text({"valid": True, "teacher_checked": checked, "experiments": labels}))
        return
    click.echo(f"{spec}: valid" + (f", {len(files):,} experiments" if len(files) > 1 else ""))
    if not checked:
        click.echo("layers and sizes are not checked: they need a model of the hub or a search (see boomspec plan)")
