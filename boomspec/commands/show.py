"""`boomspec show`: what a spec means, with every value written out."""

from __future__ import annotations

from pathlib import Path

import click

from boomspec.commands.shared import json_option, spec_argument, store_option, warn
from boomspec.core.json_text import json_text
from boomspec.store import Where

_MOST_ROWS = 50  # of experiments


@click.command("show")
@spec_argument
@store_option
@click.option("--all", "every", is_flag=True, help="Every experiment in full, not only how each differs.")
@json_option
def command(spec: Path, store: Where | None, every: bool, as_json: bool) -> None:
    """Show what SPEC means: defaults written out, layers and sizes as integers, layer plans, what is read.

    SPEC: a spec, one of its experiments (SPEC#LABEL), a compiled graph, or the folder of a run. A comment says what was
    not written ("default"), what a rule has become ("from ..."), or which file or variant says it.

    \b
    Examples:
      boomspec show specs/quickstart.yaml
      boomspec show boomspec-store/runs/quickstart-1a2b3c4d --json
    """
    from boomspec.commands.review import review
    from boomspec.models.trust import asked_for
    from boomspec.spec.yaml_writer import inline

    found = review(spec, store)
    warn(dict.fromkeys(line for experiment in found.experiments for line in asked_for(experiment.meaning)))
    if as_json:
        click.echo(json_text(found.to_json(), indent=2))
        return
    several = len(found.experiments) > 1
    shown = found.experiments if every else found.experiments[:1]
    for i, experiment in enumerate(shown):
        if several:
            click.echo(f"{'---' if i else ''}{chr(10) if i else ''}# {experiment.label}")
        click.echo(experiment.text(), nl=False)
    if several and not every:
        click.echo(f"\n# {len(found.experiments)} experiments; how the others differ from {shown[0].label}:")
        others = found.differing()
        width = max(len(experiment.label) for experiment in found.experiments)
        for experiment, differing in others[:_MOST_ROWS]:
            changes = ", ".join(
                f"{d.name}: {'(none)' if d.new is None else inline(d.new)}" for d in differing if d.name != "name"
            )
            click.echo(f"#   {experiment.label:{width}}  {changes or 'nothing'}")
        if len(others) > _MOST_ROWS:
            click.echo(f"#   and {len(others) - _MOST_ROWS} more (--json has all)")
    if found.unknown:
        click.echo(f"\n# not known: {found.unknown}")
