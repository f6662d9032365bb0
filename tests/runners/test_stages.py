"""A spec with a search is two graphs, which one process runs. A whole run of one is in test_end_to_end.py."""

import json
import signal
import sys
from pathlib import Path

import psutil

from boomspec.commands.run import Runners
from tests.runners import small
from tests.runners.corpora import wait_until
from tests.runners.test_end_to_end import counting, start

SEARCHED = {"interpolate": {"order": {"search": "klpatch", "calibration": {"sequences": 2}}}}


def test_a_signal_to_boomspec_alone_interrupts_the_second_graph_in_good_order(finished: Path, tmp_path: Path) -> None:
    spec, store = small.copied(finished, tmp_path, **SEARCHED, execution={"cpus": 1})
    process = start(spec, store.root, env=counting(tmp_path))
    runs = store.root / "runs"
    wait_until(lambda: len(list(runs.glob("*/events.jsonl"))) == 2 or process.poll() is not None, seconds=150)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 130, output
    files = sorted(runs.glob("*/status.json"), key=lambda file: file.stat().st_mtime)
    assert [json.loads(file.read_text())["state"] for file in files] == ["finished", "interrupted"], output
    assert len((tmp_path / "heads").read_text().splitlines()) == 1
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
