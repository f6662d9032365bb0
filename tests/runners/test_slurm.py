"""The script for Slurm, run with stand-ins for Slurm's own commands: two "machines", which are this one."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

from boomspec.commands.slurm import script
from boomspec.core.graph import TaskGraph
from boomspec.store import FolderStore
from tests.messages import wording
from tests.runners import small

_STAND_INS = {
    "scontrol": "echo one; echo two",
    # Options first, then the command; what it was told is kept for the test.
    "srun": 'echo "srun ${*//$\'\\n\'/ }" >> "$CALLS"; while [[ $1 == --* ]]; do shift; done; exec "$@"',
}


def test_the_script_starts_ray_on_its_machines_runs_the_graph_and_leaves_nothing(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "store")
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
    assert wording("slurm.reused_made_failed_blocked") in done.stdout
    assert store.damage("tokenize", made.id, checksums=True) is None
    calls = (tmp_path / "calls").read_text().splitlines()
    assert sum("ray start --block" in call for call in calls) == 2
    assert "--nodes=1 --ntasks=1 --nodelist=one" in calls[0]
    assert "--dashboard-host=127.0.0.1" in calls[0]
    assert "--exclude=one" in calls[1]
    assert not any("TOKEN" in call or "token" in call for call in calls)
    assert not left.exists()


# Stand-ins for Ray and the runners. `two` has a /tmp of its own.
_WITHOUT_RAY = {
    "scontrol": "echo one; echo two",
    "srun": """
places=("$@")
if [[ $* == *--exclude=one* ]]; then places=("${@//"boomspec-$SLURM_JOB_ID"/"boomspec-$SLURM_JOB_ID-two"}"); fi
set -- "${places[@]}"
while [[ $1 == --* ]]; do shift; done
exec "$@"
""",
    "ray": """
folder=$(sed -n 's|.*--temp-dir=\\([^ ]*\\).*|\\1|p' <<< "$*")
[[ -n $folder ]] || folder=/tmp/boomspec-$SLURM_JOB_ID-two/ray  # told by the head
mkdir "$folder"; chmod 777 "$folder"  # as Ray does
stat -c '%a' "$(dirname "$folder")" > "$CALLS/$(basename "$(dirname "$folder")").mode"
touch "$CALLS/by-a-worker"
port=$(sed -n 's|.*--port=\\([0-9]*\\).*|\\1|p' <<< "$*")
exec "$PYTHON" -c '
import socket, sys, time
if sys.argv[1]:
    listening = socket.create_server(("0.0.0.0", int(sys.argv[1])))
time.sleep(600)
' "$port"
""",
    "python": 'cat > /dev/null; [[ $* != *runners* ]] || { sleep 1; touch "$CALLS/by-the-driver"; }',
}


def test_only_rays_folder_is_closed_to_others_and_each_machine_removes_its_own(tmp_path: Path) -> None:
    commands, calls = tmp_path / "bin", tmp_path / "calls"
    commands.mkdir()
    calls.mkdir()
    for name, text in _WITHOUT_RAY.items():
        (commands / name).write_text(f"#!/bin/bash\n{text}\n")
        (commands / name).chmod(0o755)
    graph = small.compiled(small.write_spec(tmp_path), FolderStore(tmp_path / "store")).graph
    python, store, log = str(commands / "python"), str(tmp_path / "store"), tmp_path / "log"
    runner = [python, "-P", "-m", "runners", str(tmp_path / "graph.json"), "--store", store]
    text = script(graph, runner, log, nodes=2)
    number = os.getpid()
    environment = os.environ | {
        "PATH": f"{commands}:{os.environ['PATH']}",
        "CALLS": str(calls),
        "PYTHON": sys.executable,
        "SLURM_JOB_ID": str(number),
        "SLURM_JOB_NODELIST": "[one-two]",
    }
    done = subprocess.run(
        ["bash"], input=text, env=environment, capture_output=True, text=True, timeout=120, umask=0o002
    )
    assert done.returncode == 0, done.stdout + done.stderr
    modes = {path.name: path.read_text().strip() for path in calls.glob("*.mode")}
    assert modes == {f"boomspec-{number}.mode": "700", f"boomspec-{number}-two.mode": "700"}
    for written in ("by-a-worker", "by-the-driver"):
        assert stat.S_IMODE((calls / written).stat().st_mode) == 0o664
    assert list(Path("/tmp").glob(f"boomspec-{number}*")) == []
    assert not re.search("umask", text)
