"""What the commands about jobs on a cluster share: the cluster's address, and the program that talks to it."""

from __future__ import annotations

import sys

import click

from boomspec.commands.shared import check_runners

address_option = click.option(
    "--address",
    metavar="URL",
    envvar="RAY_API_SERVER_ADDRESS",
    default="http://127.0.0.1:8265",
    show_default="RAY_API_SERVER_ADDRESS, else http://127.0.0.1:8265",
    help="Job server of the cluster: that of its dashboard.",
)
insecure_option = click.option(
    "--insecure", is_flag=True, help="Also a cluster beyond loopback that asks for no token, so is anybody's."
)
job_argument = click.argument("job", metavar="ID")


def cluster_program(action: str, address: str, *, insecure: bool, as_json: bool) -> list[str]:
    """The command that does `action` on a cluster; its own arguments come behind."""
    check_runners()
    flags = ["--insecure"] * insecure + ["--json"] * as_json
    return [sys.executable, "-P", "-m", "runners.cli.submit", action, "--address", address, *flags]
