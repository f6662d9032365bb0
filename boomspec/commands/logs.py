"""`boomspec logs`: what a job on a cluster prints."""

from __future__ import annotations

import sys

import click

from boomspec.commands.remote import address_option, cluster_program, insecure_option, job_argument
from boomspec.commands.shared import json_option, wait


@click.command("logs")
@job_argument
@click.option("--follow", "-f", is_flag=True, help="Until it has ended; the exit code is that of the run.")
@address_option
@insecure_option
@json_option
def command(job: str, follow: bool, address: str, insecure: bool, as_json: bool) -> None:
    """Print what a job on a cluster has printed. The logs of its tasks are in its run's folder.

    \b
    Example:
      boomspec logs quickstart-1a2b3c4d-1 --follow
    """
    program = cluster_program("logs", address, insecure=insecure, as_json=as_json)
    sys.exit(wait([*program, job, *(["--follow"] if follow else [])]))
