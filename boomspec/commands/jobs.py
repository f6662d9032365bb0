"""`boomspec status`, `logs` and `stop`: the jobs on a Ray cluster. `runners.cli.submit` talks to the cluster."""

import sys
from typing import Any

import click

from boomspec.commands.shared import check_runners, module_command, options, wait

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
cluster_json_option = click.option("--json", is_flag=True, help="Print JSON for programs.")
_cluster = options(address_option, insecure_option, cluster_json_option)
_job = click.argument("job", metavar="ID")


def job_program(action: str, **options: Any) -> list[str]:
    """The command that does `action` on a cluster; the job or the graph is appended to it."""
    check_runners()
    return module_command("runners.cli.submit", action, **options)


@click.command("status")
@click.argument("job", metavar="[ID]", required=False)
@_cluster
def status(job: str | None, **cluster: Any) -> None:
    """List the jobs that boomspec submitted to a cluster; with ID, or the start of one, show one job in full.

    \b
    Example:
      boomspec status quickstart-1a2b3c4d-1 --address http://head:8265
    """
    sys.exit(wait([*job_program("status", **cluster), *([job] if job else [])]))


@click.command("logs")
@_job
@click.option("--follow", "-f", is_flag=True, help="Print until the job has ended; exit with the code of the run.")
@_cluster
def logs(job: str, **cluster: Any) -> None:
    """Print the output of a job on a cluster. The logs of its tasks are in the folder of its run.

    \b
    Example:
      boomspec logs quickstart-1a2b3c4d-1 --follow
    """
    sys.exit(wait([*job_program("logs", **cluster), job]))


@click.command("stop")
@_job
@_cluster
def stop(job: str, **cluster: Any) -> None:
    """Stop a job on a cluster. Its tasks write checkpoints first; if it is submitted again, it continues from them.

    \b
    Example:
      boomspec stop quickstart-1a2b3c4d-1
    """
    sys.exit(wait([*job_program("stop", **cluster), job]))
