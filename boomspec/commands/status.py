"""`boomspec status`: the jobs on a cluster."""

from __future__ import annotations

import sys

import click

from boomspec.commands.remote import address_option, cluster_program, insecure_option
from boomspec.commands.shared import json_option, wait


@click.command("status")
@click.argument("job", metavar="[ID]", required=False)
@address_option
@insecure_option
@json_option
def command(job: str | None, address: str, insecure: bool, as_json: bool) -> None:
    """List what boomspec has submitted to a cluster; with ID (or the start of one) all about one job.

    \b
    Example:
      boomspec status quickstart-1a2b3c4d-1 --address http://head:8265
    """
    program = cluster_program("status", address, insecure=insecure, as_json=as_json)
    sys.exit(wait([*program, *([job] if job else [])]))
