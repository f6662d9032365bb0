"""`boomspec export`: the command that writes one size of a run. The writing itself is done by `runners.cli.export`."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from boomspec.core.layers import layers_text
from boomspec.core.sizes import Member
from boomspec.plan.run import GRAPH, Run


@contextmanager
def export_command(
    run: Run, member: Member | None, folder: Path, *, force: bool, as_json: bool = False
) -> Iterator[list[str]]:
    """The command that writes `member` (None: every size) into `folder`; its graph file lasts as long as the context.

    Not the graph in the run's folder: a store may be read-only, and a spec's models made by another one's run.
    """
    with tempfile.TemporaryDirectory(prefix="boomspec-") as temporary:
        graph = Path(temporary, GRAPH)
        run.graph.write(graph)
        command = [sys.executable, "-P", "-m", "runners.cli.export", str(graph), "--store", run.store.address]
        plan = ["--plan", layers_text(member.plan)] if member is not None else []
        yield [*command, *plan, "--folder", str(folder.absolute()), *["--force"] * force, *["--json"] * as_json]
