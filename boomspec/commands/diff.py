"""`boomspec diff`: compare two specs, graphs or runs; also the setup of the diff driver of git."""

import sys

import click

from boomspec.commands.shared import json_option, offered, store_option
from boomspec.core.errors import EXIT_OK, BoomspecError
from boomspec.core.json_text import json_text
from boomspec.store import Where

EXIT_DIFFERS = 1


@click.command("diff")
@click.argument("sides", nargs=-1, metavar="A B", shell_complete=offered("runs_and_specs"))
@store_option
@click.option("--markdown", is_flag=True, help="Print Markdown, for a pull request.")
@json_option
@click.option("--git-setup", "setup", is_flag=True, help="Make `git diff` show specs like this. A B: path patterns.")
@click.option("--unset", is_flag=True, help="With --git-setup: undo it.")
@click.option("--git-driver", "driver", is_flag=True, hidden=True, help="What git calls; A B are its own arguments.")
def command(
    sides: tuple[str, ...], store: Where | None, markdown: bool, as_json: bool, setup: bool, unset: bool, driver: bool
) -> None:
    """Show how B differs from A: fields by what they change, the tasks that have to run again, results of runs.

    \b
    Each side is
      a spec                    specs/x.yaml, one experiment of it: specs/x.yaml#label
      a spec at a revision      HEAD~2:specs/x.yaml
      a compiled graph          graph.json, as boomspec graph writes it, or a saved plan
      a run                     its folder, or its name in the store

    Exits with 0 where both mean the same results (fields that only say where, how fast or under which name something
    runs are shown, and do not count), with 1 where results differ, with 2 where a side cannot be read.

    \b
    Examples:
      boomspec diff specs/qwen3-4b.yaml specs/qwen3-4b-no-kl.yaml
      boomspec diff HEAD~1:specs/quickstart.yaml specs/quickstart.yaml --markdown
    """
    if driver:
        from boomspec.diff.git_driver import driven

        driven(sides)
        return
    if setup or unset:
        from boomspec.diff.git_driver import PATTERNS, set_up

        if unset and not setup:
            raise BoomspecError("--unset goes with --git-setup")
        for line in set_up(sides or PATTERNS, undo=unset):
            click.echo(line)
        return
    if len(sides) != 2:
        raise BoomspecError(f"two sides are compared, {len(sides)} given", hint="boomspec diff A B")
    if markdown and as_json:
        raise BoomspecError("--json and --markdown: one of them")
    # Imported here: completion and help need none of it.
    from boomspec.diff import render
    from boomspec.diff.compared import compared
    from boomspec.diff.sides import both

    diff = compared(*both(*sides, store))
    if as_json:
        click.echo(json_text(diff.to_json(), indent=2))
    elif markdown:
        click.echo("\n".join(render.markdown(diff)))
    else:
        from rich.console import Console

        render.print_diff(diff, Console(highlight=False))
    sys.exit(EXIT_DIFFERS if diff.differs else EXIT_OK)
