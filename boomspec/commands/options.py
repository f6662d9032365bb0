"""Arguments and options that commands share, and warnings. What they need is quickly imported."""

import importlib
from collections.abc import Callable, Iterable
from functools import reduce
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from boomspec.store import DEFAULT_STORE, STORE_VARIABLE, Where, check_spelling, is_url


def offered(what: str) -> Callable[[click.Context, click.Parameter, str], list[CompletionItem]]:
    """Completions by a function of `boomspec.commands.completion`, which is imported only while a person types."""

    def complete(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
        completions = importlib.import_module("boomspec.commands.completion")
        return completions.silently(what, incomplete, context.params)  # type: ignore[no-any-return]  # of a module found by its name

    return complete


spec_argument = click.argument("spec", type=click.Path(path_type=Path), shell_complete=offered("specs"))
# Of a command that takes a run, too.
spec_or_run_argument = click.argument("spec", type=click.Path(path_type=Path), shell_complete=offered("runs_and_specs"))


def _where(_context: click.Context, _option: click.Parameter, value: str | None) -> Where | None:
    """A URL stays text: as a Path it would lose a slash."""
    check_spelling(value or "")
    return value if value is None or is_url(value) else Path(value)


def options(*several: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """One decorator for several options, in their order."""
    return lambda function: reduce(lambda decorated, option: option(decorated), reversed(several), function)


def _store(default: str) -> Callable[[Any], Any]:
    usual = f"{default}{STORE_VARIABLE} of the environment, else ./{DEFAULT_STORE}"
    text = f"Folder or URL (s3://bucket/path, gs://, az://) of the artifacts. Default: {usual}."
    return click.option("--store", metavar="STORE", shell_complete=offered("folders"), callback=_where, help=text)


store_option = _store("execution.store of the spec, else ")
specless_store_option = _store("")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
verify_option = click.option("--verify", is_flag=True, help="Check the checksums of artifacts that are reused.")
plain_option = click.option("--plain", is_flag=True, help="Print plain lines instead of the live view.")
cluster_options = options(  # of a command that runs tasks
    click.option("--address", help="A Ray cluster: auto, host:port or ray://host:port. Default: a private local one."),
    click.option("--insecure", is_flag=True, help="With --address: accept a cluster that asks for no token."),
)
lock_options = options(  # for `boomspec.commands.shared.run_lock`
    click.option("--locked", is_flag=True, help="Use the commits of the spec's lock; refuse where something drifted."),
    click.option("--ignore-packages", is_flag=True, help="With --locked: accept any versions of installed packages."),
)


def warn(lines: Iterable[str]) -> None:
    """Say what nobody should overlook, on stderr: what is printed for programs stays as it is."""
    for line in dict.fromkeys(lines):
        click.secho(f"warning: {line}", err=True, fg="red", bold=True)
