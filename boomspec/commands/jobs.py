"""`boomspec status`, `logs` and `stop`: the jobs on a Ray cluster. `runners.cli.submit` talks to the cluster."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import click

from boomspec.commands.shared import check_runners, json_option, module_command, wait

address_option = click.option(
    "--address",
    metavar="URL",
    envvar="RAY_API_SERVER_ADDRESS",
    default="http://127.0.0.1:8265",
    show_default="RAY_API_SERVER_ADDRESS, else http://127.0.0.1:8265",
    help="Job server of the cluster, which is its dashboard.",
)
insecure_option = click.option(
    "--insecure", is_flag=True, help="Accept a cluster beyond loopback without a token, which anybody can use."
)
_job = click.argument("job", metavar="ID")


def job_program(action: str, address: str, *, insecure: bool, as_json: bool, **options: Any) -> list[str]:
    """The command that does `action` on a cluster; the job or the graph is appended to it."""
    check_runners()
    return module_command("runners.cli.submit", action, address=address, insecure=insecure, json=as_json, **options)


def _with_cluster(function: Callable[..., Any]) -> Callable[..., Any]:
    return address_option(insecure_option(json_option(function)))


@click.command("status")
@click.argument("job", metavar="[ID]", required=False)
@_with_cluster
def status(job: str | None, address: str, insecure: bool, as_json: bool) -> None:
    """List the jobs that boomspec submitted to a cluster; with ID, or the start of one, show one job in full.

    \b
    Example:
      boomspec status quickstart-1a2b3c4d-1 --address http://head:8265
    """
    program = job_program("status", address, insecure=insecure, as_json=as_json)
    sys.exit(wait([*program, job] if job else program))


@click.command("logs")
@_job
@click.option("--follow", "-f", is_flag=True, help="Print until the job has ended; exit with the code of the run.")
@_with_cluster
def logs(job: str, follow: bool, address: str, insecure: bool, as_json: bool) -> None:
    """Print the output of a job on a cluster. The logs of its tasks are in the folder of its run.

    \b
    Example:
      boomspec logs quickstart-1a2b3c4d-1 --follow
    """
    sys.exit(wait([*job_program("logs", address, insecure=insecure, as_json=as_json, follow=follow), job]))


@click.command("stop")
@_job
@_with_cluster
def stop(job: str, address: str, insecure: bool, as_json: bool) -> None:
    """Stop a job on a cluster. Its tasks write checkpoints first; if it is submitted again, it continues from them.

    \b
    Example:
      boomspec stop quickstart-1a2b3c4d-1
    """
    sys.exit(wait([*job_program("stop", address, insecure=insecure, as_json=as_json), job]))
