"""Looking after a job whose job server does not answer, or answers with errors: patience first, then words."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from itertools import repeat
from pathlib import Path

import pytest
from aiohttp import web

from boomspec.store import FolderStore
from tests.messages import wording
from tests.runners import small
from tests.runners.job_server import JOB, JobServer, Trouble, breaks_after, hangs_up, job_server, says, talks_on

_COMMAND = """
import sys
from runners.cli import submit; from runners.cluster import job_server as jobs
jobs._PATIENCE_SECONDS = float(sys.argv[1])
sys.exit(submit.main(sys.argv[2:]))
"""
# Forked for each command, for it takes a second to import Ray: standard input is a socket that commands come from.
_FORKING = """
import json, os, socket, sys, traceback
import ray.job_submission
from runners.cli import submit; from runners.cluster import job_server as jobs
server = socket.socket(fileno=0)
while True:
    data, (output, errors), *_ = socket.recv_fds(server, 65536, 2)
    jobs._PATIENCE_SECONDS, *arguments = json.loads(data)
    if (child := os.fork()) == 0:
        os.dup2(output, 1), os.dup2(errors, 2)
        code = 1
        try:
            code = submit.main(arguments)
        except SystemExit as end:
            code = end.code
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        os._exit(code)
    os.close(output), os.close(errors)
    server.sendall(json.dumps(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])).encode())
"""
_TRACEBACK = "Traceback (most recent call last):\n  File 'agent.py', line 7, in logs\nOSError: no such log\n"


Ended = Callable[..., tuple[int, str, str]]
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}


@pytest.fixture
def server() -> Iterator[JobServer]:
    with job_server() as made:
        yield made


def started(server: JobServer, action: str, *arguments: str, patience: float = 60.0) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _COMMAND, str(patience), action, *arguments, "--address", server.address]
    return subprocess.Popen(command, env=CLEAN, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def ended() -> Iterator[Ended]:
    """Runs a command to its end: its code, its output, its errors."""
    ours, theirs = socket.socketpair()
    with ours, theirs, subprocess.Popen([sys.executable, "-c", _FORKING], env=CLEAN, stdin=theirs.fileno()) as process:

        def call(server: JobServer, action: str, *arguments: str, patience: float = 60.0) -> tuple[int, str, str]:
            command = json.dumps([patience, action, *arguments, "--address", server.address])
            with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
                socket.send_fds(ours, [command.encode()], [output.fileno(), errors.fileno()])
                ours.settimeout(240)
                code = json.loads(ours.recv(100))
                output.seek(0)
                errors.seek(0)
                return code, output.read(), errors.read()

        yield call
        process.kill()


@pytest.mark.parametrize(
    ("arguments", "question", "trouble", "said"),
    [
        (("status",), "jobs", says(500, "GCS is down"), wording("jobs.request_failed_status_code")),
        (("status", JOB), "jobs", hangs_up, wording("jobs.remote_end_closed_connection")),
        (("logs", JOB), "logs", says(500, _TRACEBACK), wording("jobs.request_failed_status_code_oserror")),
        (("stop", JOB), "stop", says(500, _TRACEBACK), wording("jobs.request_failed_status_code_oserror")),
    ],
)
def test_an_error_of_the_job_server_is_said_in_a_line(
    server: JobServer, ended: Ended, arguments: tuple[str, ...], question: str, trouble: Trouble, said: str
) -> None:
    server.troubles[question] = repeat(trouble)
    code, output, errors = ended(server, *arguments)
    assert (code, output) == (2, "")
    assert errors == (wording("jobs.error_no_answer_cluster", said=said))


def test_a_job_server_that_suddenly_asks_for_a_token_says_so_as_one_that_did_from_the_start(
    server: JobServer, ended: Ended
) -> None:
    server.troubles["jobs"] = repeat(says(401, "Unauthorized"))
    code, output, _ = ended(server, "status", "--json")
    assert code == 2
    assert json.loads(output)["error"]["message"] == wording("jobs.cluster_asks_token", address=server.address)


def test_the_status_of_a_job_at_work_says_how_far_it_is(server: JobServer, ended: Ended) -> None:
    server.log = (
        "41 tasks to run\n10:00:01    [0/41] start    tokenize\n10:00:09   [12/41] done     tokenize (8 s)\n"
        "10:00:19   [12/41]          distill student: 24% after 0:10, 0:32 left  120/500 steps\n"
    )
    code, output, _ = ended(server, "status")
    assert code == 0
    assert output.rstrip().endswith("12/41 tasks; distill student: 24% after 0:10, 0:32 left  120/500 steps")
    _, output, _ = ended(server, "status", JOB, "--json")
    assert json.loads(output)["progress"]["done"] == 12
    server.state = "SUCCEEDED"
    _, output, _ = ended(server, "status", JOB, "--json")
    assert json.loads(output)["progress"] is None


def test_a_connection_that_breaks_after_a_long_silence_is_taken_up_again(server: JobServer, ended: Ended) -> None:
    server.log = "started\nmade\n"
    server.troubles["tail"] = iter([breaks_after(1.5), breaks_after(1.5), breaks_after(1.5, "started\n")])
    code, output, errors = ended(server, "logs", JOB, "--follow", patience=1.0)
    assert (code, output, errors) == (0, f"started\nmade\n{JOB}: succeeded\n", "")
    assert server.asked.count("tail") == 4


def test_following_survives_whatever_a_head_that_restarts_answers(server: JobServer, ended: Ended) -> None:
    server.log = "started\nmade\n"
    server.troubles |= {
        "tail": iter([hangs_up, says(502, "Bad Gateway"), breaks_after(0, "started\n")]),
        "info": iter([hangs_up, says(503, "starting"), says(500, _TRACEBACK)]),
        "logs": iter([says(500, _TRACEBACK), hangs_up]),
    }
    code, output, errors = ended(server, "logs", JOB, "--follow")
    assert (code, output, errors) == (0, f"started\nmade\n{JOB}: succeeded\n", "")


def test_a_job_is_followed_where_no_connection_for_its_log_gets_through(server: JobServer, ended: Ended) -> None:
    async def ends(request: web.Request) -> web.StreamResponse:
        server.state = "SUCCEEDED"
        return web.json_response({"logs": "started\n"})

    server.log = "started\nmade\n"
    server.troubles |= {"tail": repeat(says(404, "Not Found")), "logs": iter([ends])}
    code, output, errors = ended(server, "logs", JOB, "--follow")
    assert (code, output, errors) == (0, f"started\nmade\n{JOB}: succeeded\n", "")


def test_a_cluster_that_is_gone_while_it_is_followed_is_said_after_the_patience(
    server: JobServer, ended: Ended
) -> None:
    server.troubles |= {"tail": repeat(hangs_up), "info": repeat(hangs_up)}
    code, _, errors = ended(server, "logs", JOB, "--follow", patience=1.0)
    assert code == 2
    assert errors == (wording("jobs.error_cluster_no_longer", job=JOB))
    assert server.asked.count("info") > 2


def test_who_only_wants_the_first_lines_of_a_log_ends_the_command(server: JobServer) -> None:
    server.troubles["tail"] = repeat(talks_on)
    process = started(server, "logs", JOB, "--follow")
    assert process.stdout is not None
    assert process.stderr is not None
    with process.stderr as errors:
        try:
            assert process.stdout.readline() == "line\n"
            process.stdout.close()
            assert process.wait(timeout=60) == 130
        finally:
            process.kill()
            process.wait()
        assert errors.read() == ""


def test_a_job_that_stops_while_its_head_is_busy_is_waited_for(server: JobServer, ended: Ended) -> None:
    server.troubles["info"] = iter([says(500, "GCS is down"), hangs_up, says(503, "busy")])
    code, output, errors = ended(server, "stop", JOB)
    assert (code, errors) == (0, "")
    assert output.startswith(f"{JOB}: stopped")
    assert server.asked.count("stop") == 1


def test_a_job_that_was_told_to_stop_by_a_cluster_that_is_gone_since_is_said_to_be_so(
    server: JobServer, ended: Ended
) -> None:
    server.troubles["info"] = repeat(says(500, "GCS is down"))
    code, _, errors = ended(server, "stop", JOB, patience=1.0)
    assert code == 2
    assert wording("jobs.cluster_no_longer_answers") in errors
    assert wording("jobs.hint_told_stop_look", job=JOB) in errors


@pytest.fixture
def graph(tmp_path: Path) -> tuple[str, ...]:
    """The arguments of `submit`."""
    made = small.compiled(small.write_spec(tmp_path), FolderStore(tmp_path / "store")).graph
    made.write(tmp_path / "graph.json")
    (tmp_path / "lock.json").write_text("{}")
    return (str(tmp_path / "graph.json"), "--store", str(tmp_path / "store"), "--lock", str(tmp_path / "lock.json"))


@pytest.mark.parametrize(
    ("question", "said"),
    [("submit", wording("jobs.cluster_did_not_take")), ("nodes", wording("jobs.no_answer_cluster_job"))],
)
def test_a_submission_that_fails_is_said_in_a_line(
    server: JobServer, ended: Ended, graph: tuple[str, ...], question: str, said: str
) -> None:
    server.troubles[question] = repeat(hangs_up)
    code, _, errors = ended(server, "submit", *graph)
    assert code == 2
    # A connection that is closed while the bundle is still sent is also reset.
    reset = f"{said}: Connection reset by peer"
    assert wording("jobs.remote_end_closed_connection_without", said=said) in errors or reset in errors
    assert "Traceback" not in errors


def test_a_submission_that_the_cluster_has_taken_is_said_to_be_so_though_its_head_is_busy(
    server: JobServer, ended: Ended, graph: tuple[str, ...]
) -> None:
    busy = [says(500, "GCS is down"), hangs_up]
    server.troubles |= {"jobs": iter([None, *busy]), "info": iter(busy)}
    code, output, _ = ended(server, "submit", *graph)
    assert code == 0
    assert f"submitted {JOB}\n" in output
