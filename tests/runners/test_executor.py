"""Whole runs of `python -m runners` on real Ray: killed, interrupted, failing, finished, repeated.

Ray takes seconds to start, so the runs make up one story in one store, told by the fixture `story`:

    1. the driver is killed with SIGKILL in the middle of a task
    2. the run is started again and interrupted with Ctrl-C
    3. it is started again; a worker is killed with SIGKILL and replaced; another one, of a task that may not
       be retried, is killed for good; one task fails; both block what needs them
    4. what could be made is asked for again

The task in whose middle things happen reads its documents from pipes: it goes on when the test feeds it.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from boomspec.core.errors import BoomspecError
from boomspec.core.execution import Execution
from boomspec.core.graph import Node, Task
from runners.cluster.ray_cluster import check_feasible, cluster
from tests.messages import wording
from tests.runners.corpora import feed, record, wait_until
from tests.runners.story import SECRETS, TEXTS, Ran, Story, alive, pretraining

HALF = 6


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    temporary = Path(tempfile.mkdtemp(prefix="bx-", dir="/tmp"))  # Ray's sockets want a short path
    yield Story(tmp_path_factory.mktemp("story"), temporary)
    shutil.rmtree(temporary, ignore_errors=True)


@pytest.fixture(scope="module")
def after_kill(story: Story) -> Ran:
    process = story.start()
    story.feed(0, HALF)
    story.look()
    process.kill()
    ran = story.ended(process)
    story.look()
    wait_until(lambda: not alive(story.workers(story.good)[-1]))  # Ray ends the workers of a driver that is gone
    return ran


@pytest.fixture(scope="module")
def after_interrupt(story: Story, after_kill: Ran) -> Ran:
    process = story.start()
    story.feed(0, HALF)
    os.killpg(process.pid, signal.SIGINT)
    wait_until(lambda: "interrupted: stopping" in (story.run_folder / "events.jsonl").read_text())
    for pipe, content in story.pipes[HALF:-1]:
        with suppress(OSError):  # nobody reads any more
            feed(pipe, content, seconds=0.5)
        time.sleep(0.3)  # the body is interrupted when it comes back from reading
    ran = story.ended(process)
    story.look()
    return ran


@pytest.fixture(scope="module")
def finished(story: Story, after_interrupt: Ran) -> Ran:
    process = story.start()
    story.feed(0, HALF)
    os.kill(story.workers(story.good)[-1], signal.SIGKILL)
    feeding = threading.Thread(target=story.feed, args=(0, len(TEXTS)))
    feeding.start()  # beside the other task: there is one CPU, and either may come first
    wait_until(lambda: bool(story.workers(story.fragile)))
    os.kill(story.workers(story.fragile)[-1], signal.SIGKILL)
    ran = story.ended(process)
    feeding.join()
    return ran


@pytest.fixture(scope="module")
def again(story: Story, finished: Ran) -> subprocess.CompletedProcess[str]:
    process = story.start("good.json")
    output, _ = process.communicate(timeout=300)
    return subprocess.CompletedProcess(process.args, process.returncode, output)


def test_a_driver_that_is_killed_leaves_nothing_that_counts_as_made(after_kill: Ran) -> None:
    assert after_kill.code == -signal.SIGKILL
    assert after_kill.artifacts == set()
    assert "task_started" in after_kill.of("good tokens")


def test_others_see_that_it_runs_and_that_it_was_killed_or_interrupted(story: Story, after_interrupt: Ran) -> None:
    assert story.seen == ["running", "killed", "interrupted"]


def test_the_temporary_folder_of_a_killed_driver_is_removed_by_the_next_run(
    after_kill: Ran, after_interrupt: Ran
) -> None:
    assert [Path(name).suffix for name in after_kill.temporary] == ["", ".lock"]
    assert after_interrupt.temporary == []


def test_ctrl_c_stops_the_tasks_and_ends_with_130(after_interrupt: Ran) -> None:
    assert after_interrupt.code == 130, after_interrupt.output
    assert after_interrupt.of("good tokens") == ["task_started", "task_interrupted"]
    assert after_interrupt.events[-1]["state"] == "interrupted"
    assert wording("executor.same_command_continues") in after_interrupt.output


def test_ctrl_c_leaves_no_artifact_no_process_and_no_temporary_file(after_interrupt: Ran) -> None:
    assert after_interrupt.artifacts == set()
    assert after_interrupt.workspaces == []
    assert after_interrupt.processes == []
    assert after_interrupt.temporary == []


def test_a_worker_that_is_killed_is_replaced_and_the_artifact_is_that_of_an_undisturbed_run(
    story: Story, finished: Ran
) -> None:
    assert finished.of("good tokens") == ["task_started", "task_retried", "task_finished"], finished.output
    folder = story.store.path("tokenize", story.good.id)
    assert story.store.damage("tokenize", story.good.id, checksums=True) is None
    files = {file.relative_to(folder) for file in folder.rglob("*") if file.is_file()} - {Path("artifact.json")}
    assert files == {file.relative_to(story.reference) for file in story.reference.rglob("*") if file.is_file()}
    for file in files:
        assert (folder / file).read_bytes() == (story.reference / file).read_bytes()


def test_a_failure_blocks_only_what_needs_it_and_the_run_ends_with_1(story: Story, finished: Ran) -> None:
    assert finished.code == 1
    assert finished.of("bad tokens") == ["task_started", "task_failed"]
    for name in ("teacher", "score", "report"):
        assert finished.of(name) == ["task_blocked"]
    errors = {event["name"]: event["error"] for event in finished.events if "error" in event}
    assert wording("executor.rows_jsonl_no_field", name="text") in errors["bad tokens"]
    assert errors["report"] == wording("executor.needs_bad_tokens_failed")
    status = json.loads((story.run_folder / "status.json").read_text())
    assert status["counts"] == {"made": 1, "failed": 2, "blocked": 4}
    assert status["state"] == finished.events[-1]["state"] == "failed"


def test_a_worker_that_is_lost_for_good_fails_its_task_and_blocks_what_needs_it(finished: Ran) -> None:
    assert finished.of("fragile tokens") == ["task_started", "task_failed"]
    assert finished.of("fragile teacher") == ["task_blocked"]
    errors = {event["name"]: event["error"] for event in finished.events if "error" in event}
    assert errors["fragile tokens"].startswith(wording("executor.worker_lost_attempts_worker"))
    assert errors["fragile teacher"] == wording("executor.needs_fragile_tokens_failed")


def test_the_summary_counts_and_says_what_failed_where_its_log_is_and_where_the_report_is(
    story: Story, finished: Ran
) -> None:
    lines = finished.output.splitlines()
    assert wording("executor.reused_made_failed_blocked") in lines
    place = next(i for i, line in enumerate(lines) if line.startswith("failed: bad tokens: "))
    assert wording("executor.no_field", name="text") in lines[place]
    log = next(line for line in lines[place:] if line.startswith("  log: "))
    assert "Traceback" in Path(log.removeprefix("  log: ")).read_text()
    assert any(line.startswith(wording("executor.failed_fragile_tokens_worker")) for line in lines)
    assert lines[-1] == f"report: {story.run_folder}/report/report.html"


def test_the_report_names_what_is_missing_and_why(story: Story, finished: Ran) -> None:
    assert finished.code == 1
    results = json.loads((story.run_folder / "report" / "results.json").read_text())
    assert [missing["series"] for missing in results["missing"]] == ["teacher"]
    assert "bad tokens" in (story.run_folder / "report" / "report.html").read_text()


def test_the_report_can_be_made_again_without_running_anything(story: Story, finished: Ran) -> None:
    assert finished.code == 1
    page = story.run_folder / "report" / "report.html"
    page.unlink()
    done = subprocess.run(
        [sys.executable, "-m", "runners", story.folder / "graph.json", "--store", story.store.root, "--report"],
        capture_output=True,
        text=True,
        env={**os.environ, "HOME": str(story.home)},
    )
    assert (done.returncode, done.stdout) == (0, f"report: {page}\n"), done.stderr
    assert "bad tokens" in page.read_text()  # the reason, as the last run left it


def test_a_run_leaves_no_process_and_no_temporary_file_behind(story: Story, finished: Ran) -> None:
    assert finished.processes == []
    assert finished.temporary == []
    # The one that was killed for good may leave a folder, which its next run sweeps up.
    assert not [name for name in finished.workspaces if story.fragile.id not in name]


def test_a_second_run_does_nothing_and_says_so(again: subprocess.CompletedProcess[str]) -> None:
    assert again.returncode == 0
    assert wording("executor.nothing_do_all_artifacts") in again.stdout
    assert "starting Ray" not in again.stdout


def test_nothing_is_written_into_the_home_folder(story: Story, again: subprocess.CompletedProcess[str]) -> None:
    assert again.returncode == 0
    assert list(story.home.iterdir()) == []


def test_no_secret_is_in_the_store_or_in_what_is_printed(story: Story, finished: Ran) -> None:
    files = [file for file in story.store.root.rglob("*") if file.is_file()]
    logs = [file for file in files if file.suffix == ".log" and "<HF_TOKEN>" in file.read_text()]
    assert len(logs) == 1  # the message that quotes it was written, and redacted
    for secret in SECRETS.values():
        assert secret not in finished.output
        assert not [file for file in files if secret.encode() in file.read_bytes()]


def test_an_address_where_nothing_listens_is_said_at_once() -> None:
    with socket.socket() as silent:  # bound, but not listening
        silent.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with (
            pytest.raises(BoomspecError, match=wording("executor.no_ray_cluster_connection", address=address)),
            cluster(address),
        ):
            pass


def test_a_bad_graph_or_store_ends_with_2_and_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "graph.json").write_text("{}")
    done = subprocess.run(
        [sys.executable, "-m", "runners", tmp_path / "graph.json", "--store", tmp_path / "store"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(wording("executor.error_graph_json_graph", tmp_path=tmp_path))
    assert "Traceback" not in done.stderr


def test_a_task_that_no_machine_can_run_is_named_with_what_it_asks_and_what_there_is() -> None:
    small = Node(Task(record(), {}), "tokenize data", Execution(cpus=2))
    large = Node(Task(pretraining(), {}), "teacher", Execution(cpus=1, gpus=3))
    machines = [{"CPU": 8.0}, {"CPU": 4.0, "GPU": 2.0}, {"CPU": 1.0, "GPU": 2.0}]  # no single one has three GPUs
    check_feasible([small], machines)
    with pytest.raises(BoomspecError) as caught:
        check_feasible([small, large], machines)
    message = str(caught.value)
    assert wording("executor.teacher_asks_cpus_gpus") in message
    assert "4 CPUs and 2 GPUs" in message
    assert "tokenize data" not in message
