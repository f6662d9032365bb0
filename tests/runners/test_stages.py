"""A spec with a search is two graphs, and starts Ray once: real runs, with every head that starts counted."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil

from boomspec.commands.run import Runners
from tests.runners import small
from tests.runners.corpora import wait_until

SEARCHED = {"interpolate": {"order": {"search": "klpatch", "calibration": {"sequences": 2}}}}
# Read by every Python that starts: notes the processes of Ray that are the head of a cluster.
COUNTER = """
import os, sys
def note(event, arguments):
    if event == "subprocess.Popen" and "gcs_server" in str(arguments[1][0]):
        with open(os.environ["HEADS"], "a") as file:
            file.write(f"{os.getpid()}\\n")
sys.addaudithook(note)
"""


def start(folder: Path) -> subprocess.Popen[str]:
    (folder / "site").mkdir(exist_ok=True)
    (folder / "site" / "sitecustomize.py").write_text(COUNTER)
    command = [sys.executable, "-P", "-m", "boomspec.commands.cli", "run", folder / "spec.yaml", "--plain"]
    command += ["--store", folder / "store"]
    path = os.pathsep.join([str(folder / "site"), os.environ.get("PYTHONPATH", "")])
    variables = {**os.environ, "PYTHONPATH": path, "HEADS": str(folder / "heads")}
    pipe = subprocess.PIPE
    return subprocess.Popen([*map(str, command)], stdout=pipe, stderr=subprocess.STDOUT, text=True, env=variables)


def heads(folder: Path) -> list[str]:
    return (folder / "heads").read_text().splitlines()


def states(folder: Path) -> list[str]:
    """How the runs of both graphs ended, in their order."""
    files = sorted((folder / "store" / "runs").glob("*/status.json"), key=lambda file: file.stat().st_mtime)
    return [json.loads(file.read_text())["state"] for file in files]


def test_a_spec_with_a_search_starts_ray_once(tmp_path: Path) -> None:
    small.write_spec(tmp_path, **SEARCHED)
    process = start(tmp_path)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    assert states(tmp_path) == ["finished", "finished"]
    assert len(heads(tmp_path)) == 1
    assert output.count("artifacts reused; starting Ray") == 2
    assert "report: " in output
    again = start(tmp_path)
    output, _ = again.communicate(timeout=100)
    assert (again.returncode, len(heads(tmp_path))) == (0, 1), output
    assert "nothing to do" in output


def test_a_signal_to_boomspec_alone_interrupts_the_second_graph_in_good_order(tmp_path: Path) -> None:
    small.write_spec(tmp_path, **SEARCHED)
    process = start(tmp_path)
    runs = tmp_path / "store" / "runs"
    wait_until(lambda: len(list(runs.glob("*/events.jsonl"))) == 2 or process.poll() is not None, seconds=150)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 130, output
    assert states(tmp_path) == ["finished", "interrupted"], output
    assert len(heads(tmp_path)) == 1
    commands = [" ".join(one.info["cmdline"] or []) for one in psutil.process_iter(["cmdline"])]
    assert not [command for command in commands if str(tmp_path) in command]


ECHO = """
import os, socket, sys
with open(sys.argv[1], "a") as file:
    file.write(f"{os.getpid()}\\n")
parent = socket.socket(fileno=0)
parent.sendall(b"0\\n")
for _ in parent.makefile():
    parent.sendall(b"1\\n")
"""


def test_graphs_share_a_process_unless_only_one_of_them_reads_the_hub(tmp_path: Path) -> None:
    command, runners = [sys.executable, "-P", "-c", ECHO, str(tmp_path / "processes")], Runners()
    codes = [runners.run(command, reads_hub=hub, last=False) for hub in (False, False, True, True)]
    runners.end()
    assert codes == [0, 1, 0, 1]
    assert len((tmp_path / "processes").read_text().splitlines()) == 2
