"""`boomspec stop`: stop a job on a cluster."""

from __future__ import annotations

import sys

import click

from boomspec.commands.remote import address_option, cluster_program, insecure_option, job_argument
from boomspec.commands.shared import json_option, wait


@click.command("stop")
@job_argument
@address_option
@insecure_option
@json_option
def command(job: str, address: str, insecure: bool, as_json: bool) -> None:
    """Stop a job on a cluster. Its tasks write checkpoints first, and submitting it again goes on from there.

    \b
    Example:
      boomspec stop quickstart-1a2b3c4d-1
    """
    sys.exit(wait([*cluster_program("stop", address, insecure=insecure, as_json=as_json), job]))
