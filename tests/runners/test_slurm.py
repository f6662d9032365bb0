"""The script for Slurm, run with stand-ins for Slurm's own commands: two "machines", which are this one."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from boomspec.graph import TaskGraph
from boomspec.store import Store
from tests.runners import small

_STAND_INS = {
    "scontrol": "echo one; echo two",
    # Options first, then the command; what it was told is kept for the test.
    "srun": 'echo "srun $*" >> "$CALLS"; while [[ $1 == --* ]]; do shift; done; exec "$@"',
}


def test_the_script_starts_ray_on_its_machines_runs_the_graph_and_leaves_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    whole = small.compiled(small.write_spec(tmp_path), store).graph
    made = next(node for node in whole.nodes.values() if node.task.kind == "tokenize")
    graph = tmp_path / "tokens.json"
    TaskGraph("tokens", {made.id: made}, whole.sources, (made.id,)).write(graph)
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, text in _STAND_INS.items():
        (commands / name).write_text(f"#!/bin/bash\n{text}\n")
        (commands / name).chmod(0o755)
    submit = [sys.executable, "-m", "boomspec", "submit", graph, "--slurm", "--nodes", "2", "--store", store.root]
    script = subprocess.run(submit, capture_output=True, text=True, check=True).stdout
    number = os.getpid()
    left = Path(f"/tmp/boomspec-{number}")
    with tempfile.TemporaryDirectory(dir="/tmp") as home:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        environment = clean | {
            "PATH": f"{commands}:{os.environ['PATH']}",
            "CALLS": str(tmp_path / "calls"),
            "HOME": home,
        }
        environment |= {"SLURM_JOB_ID": str(number), "SLURM_JOB_NODELIST": "[one-two]"}
        done = subprocess.run(
            ["bash"], input=script, env=environment, capture_output=True, text=True, timeout=240, cwd=tmp_path
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "reused 0  made 1  failed 0  blocked 0" in done.stdout
    assert store.damage("tokenize", made.id, checksums=True) is None
    calls = (tmp_path / "calls").read_text().splitlines()
    assert sum("ray start --block" in call for call in calls) == 2
    assert "--nodes=1 --ntasks=1 --nodelist=one" in calls[0]
    assert "--dashboard-host=127.0.0.1" in calls[0]
    assert "--exclude=one" in calls[1]
    assert not any("TOKEN" in call or "token" in call for call in calls)
    assert not left.exists()
