"""Whole runs of `python -m runners` on real Ray: killed, interrupted, failing, finished, repeated.

Ray takes seconds to start, so the runs make up one story in one store, told by the fixture `story`:

    1. the driver is killed with SIGKILL in the middle of a task
    2. the run is started again and interrupted with Ctrl-C
    3. it is started again; a worker is killed with SIGKILL; one task fails and blocks others
    4. what could be made is asked for again

The task in whose middle things happen reads its documents from pipes: it goes on when the test feeds it.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from boomspec.errors import BoomspecError
from boomspec.graph import Execution, Node, Task, TaskGraph
from boomspec.store import Store
from boomspec.tasks import Architecture, Cell, Evaluate, HeldOut, Pretrain, Record, Report
from runners.cluster import check_feasible
from runners.tasks import tokenize
from tests.runners import tiny
from tests.runners.corpora import (
    as_pipe,
    context,
    feed,
    record,
    tokenizer_source,
    wait_until,
    write_jsonl,
    write_texts,
)

SECRETS = {"HF_TOKEN": "hf_0123456789abcdef", "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG/bPxRfiCY"}
TEXTS = [f"document number {index}, which is one of many\n" * 5 for index in range(12)]
HALF = 6
MARK = "BOOMSPEC_TEST_RUN"  # in the environment of every process that a run starts


@dataclass
class Ran:
    """One run that has ended, and what it left."""

    code: int
    output: str
    artifacts: set[str]
    workspaces: list[str]
    processes: list[str]
    temporary: list[str]
    events: list[dict[str, Any]] = field(default_factory=list)

    def of(self, name: str) -> list[str]:
        return [event["event"] for event in self.events if event.get("name") == name]


class Story:
    """The graph, its store and the runs."""

    def __init__(self, folder: Path, temporary: Path) -> None:
        self.folder, self.temporary, self.runs = folder, temporary, 0
        self.home = folder / "home"
        self.home.mkdir()
        self.store = Store(folder / "store")
        text = write_texts(folder / "texts", TEXTS)
        trained = context(folder / "trained", record(held_out_every=0), text=text)
        tokenize.run(trained)
        tokenizer = tokenizer_source(trained.path / "tokenizer")
        reference = context(folder / "reference", record(train_tokenizer=None), text=text, tokenizer=tokenizer)
        tokenize.run(reference)
        self.reference = reference.path
        # The message of the failure quotes a secret.
        rows = write_jsonl(folder / "rows.jsonl", [{SECRETS["HF_TOKEN"]: "x", SECRETS["AWS_SECRET_ACCESS_KEY"]: "y"}])
        self.good = Task(record(train_tokenizer=None), {"text": text.id, "tokenizer": tokenizer.id})
        bad = Task(record(), {"text": rows.id})
        teacher = Task(_pretrain(), {"tokens": bad.id})
        score = Task(
            Evaluate(measure=HeldOut(sequence_length=16), precision="fp32"), {"model": teacher.id, "tokens": bad.id}
        )
        report = Task(_report(), {"teacher-held_out": score.id})
        named = {"good tokens": self.good, "bad tokens": bad, "teacher": teacher, "score": score, "report": report}
        nodes = {task.id: Node(task, name) for name, task in named.items()}
        sources = {source.id: source for source in (text, tokenizer, rows)}
        self.graph = TaskGraph("story", nodes, sources, (self.good.id, report.id))
        self.graph.write(folder / "graph.json")
        only_good = TaskGraph("good", {self.good.id: nodes[self.good.id]}, sources, (self.good.id,))
        only_good.write(folder / "good.json")
        self.run_folder = self.store.run_folder("story", self.graph.id)
        self.pipes = [(Path(file), as_pipe(Path(file))) for file in text.location["files"]]

    def start(self, graph: str = "graph.json") -> subprocess.Popen[str]:
        environment = {**os.environ, **SECRETS, "HOME": str(self.home), "TMPDIR": str(self.temporary)}
        self.runs += 1
        environment |= {MARK: self.mark}
        command = [sys.executable, "-m", "runners", self.folder / graph, "--store", self.store.root, "--cpus", "1"]
        return subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # so that Ctrl-C can be sent to all of it, as a terminal does
        )

    @property
    def mark(self) -> str:
        return f"{self.folder}-{self.runs}"

    def feed(self, start: int, end: int) -> None:
        for pipe, content in self.pipes[start:end]:
            feed(pipe, content)

    def worker(self) -> int:
        """The process that last started on the task with the pipes."""
        file = self.run_folder / "progress" / f"{self.good.id}.jsonl"
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        return int([line["started"]["pid"] for line in lines if "started" in line][-1])

    def ended(self, process: subprocess.Popen[str]) -> Ran:
        output, _ = process.communicate(timeout=120)
        tokens = self.store.root / "tokenize"
        names = sorted(path.name for path in tokens.iterdir()) if tokens.exists() else []
        events = self.run_folder / "events.jsonl"
        lines = [json.loads(line) for line in events.read_text().splitlines()]
        return Ran(
            code=process.returncode,
            output=output,
            artifacts={name for name in names if not name.startswith(".")},
            workspaces=[name for name in names if name.startswith(".") and not name.endswith(".resume")],
            processes=_processes(self.mark),
            temporary=sorted(path.name for path in self.temporary.iterdir()),
            events=[line for line in lines if line["run"] == lines[-1]["run"]],
        )


def _pretrain() -> Record:
    architecture = Architecture(
        layers=2,
        hidden_size=16,
        intermediate_size=24,
        attention_heads=2,
        key_value_heads=2,
        vocabulary=300,
        context=16,
        tied=True,
        initializer_range=0.1,
    )
    return Pretrain(architecture=architecture, recipe=tiny.recipe())


def _report() -> Record:
    cell = Cell(series="teacher", layers=2, parameters=9000, bytes=36000, measure="held_out", input="teacher-held_out")
    return Report(cells=(cell,), trainings={})


def _processes(mark: str) -> list[str]:
    """Command lines of the living processes that carry the mark in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue  # it has ended, or is not ours
    return found


def _alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    temporary = Path(tempfile.mkdtemp(prefix="bx-", dir="/tmp"))  # Ray's sockets want a short path
    yield Story(tmp_path_factory.mktemp("story"), temporary)
    shutil.rmtree(temporary, ignore_errors=True)


@pytest.fixture(scope="module")
def after_kill(story: Story) -> Ran:
    process = story.start()
    story.feed(0, HALF)
    process.kill()
    ran = story.ended(process)
    wait_until(lambda: not _alive(story.worker()))  # Ray ends the workers of a driver that is gone
    for left in story.temporary.iterdir():
        shutil.rmtree(left)
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
    return story.ended(process)


@pytest.fixture(scope="module")
def finished(story: Story, after_interrupt: Ran) -> Ran:
    process = story.start()
    story.feed(0, HALF)
    os.kill(story.worker(), signal.SIGKILL)
    story.feed(0, len(TEXTS))
    return story.ended(process)


@pytest.fixture(scope="module")
def again(story: Story, finished: Ran) -> subprocess.CompletedProcess[str]:
    process = story.start("good.json")
    output, _ = process.communicate(timeout=120)
    return subprocess.CompletedProcess(process.args, process.returncode, output)


def test_a_driver_that_is_killed_leaves_nothing_that_counts_as_made(after_kill: Ran) -> None:
    assert after_kill.code == -signal.SIGKILL
    assert after_kill.artifacts == set()
    assert "task_started" in after_kill.of("good tokens")


def test_ctrl_c_stops_the_tasks_and_ends_with_130(after_interrupt: Ran) -> None:
    assert after_interrupt.code == 130, after_interrupt.output
    assert after_interrupt.of("good tokens") == ["task_started", "task_interrupted"]
    assert after_interrupt.events[-1]["state"] == "interrupted"
    assert "the same command continues" in after_interrupt.output


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
    assert "rows.jsonl:1: has no field 'text'" in errors["bad tokens"]
    assert errors["report"] == "needs bad tokens, which failed"
    status = json.loads((story.run_folder / "status.json").read_text())
    assert status["counts"] == {"made": 1, "failed": 1, "blocked": 3}
    assert status["state"] == finished.events[-1]["state"] == "failed"


def test_the_summary_counts_and_says_what_failed_where_its_log_is_and_where_the_report_is(
    story: Story, finished: Ran
) -> None:
    lines = finished.output.splitlines()
    log = next(story.run_folder.glob("logs/*.log")).parent
    assert "reused 0  made 1  failed 1  blocked 3" in lines
    assert any(line.startswith("failed: bad tokens: ") and "has no field 'text'" in line for line in lines)
    assert sum(line.startswith(f"  log: {log}") for line in lines) == 1
    assert lines[-1] == f"report: {story.run_folder}/report/report.html"


def test_the_report_names_what_is_missing_and_why(story: Story, finished: Ran) -> None:
    assert finished.code == 1
    results = json.loads((story.run_folder / "report" / "results.json").read_text())
    assert [missing["series"] for missing in results["missing"]] == ["teacher"]
    assert "bad tokens" in (story.run_folder / "report" / "report.html").read_text()


def test_a_run_leaves_no_process_and_no_temporary_file_behind(finished: Ran) -> None:
    assert finished.processes == []
    assert finished.temporary == []
    assert finished.workspaces == []


def test_a_second_run_does_nothing_and_says_so(again: subprocess.CompletedProcess[str]) -> None:
    assert again.returncode == 0
    assert "nothing to do: all 1 artifacts are in the store" in again.stdout
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


def test_a_bad_graph_or_store_ends_with_2_and_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "graph.json").write_text("{}")
    done = subprocess.run(
        [sys.executable, "-m", "runners", tmp_path / "graph.json", "--store", tmp_path / "store"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {tmp_path}/graph.json: graph version None")
    assert "Traceback" not in done.stderr


def test_a_task_that_no_machine_can_run_is_named_with_what_it_asks_and_what_there_is() -> None:
    small = Node(Task(record(), {}), "tokenize data", Execution(cpus=2))
    large = Node(Task(_pretrain(), {}), "teacher", Execution(cpus=1, gpus=3))
    machines = [{"CPU": 8.0}, {"CPU": 4.0, "GPU": 2.0}, {"CPU": 1.0, "GPU": 2.0}]  # no single one has three GPUs
    check_feasible([small], machines)
    with pytest.raises(BoomspecError) as caught:
        check_feasible([small, large], machines)
    message = str(caught.value)
    assert "teacher asks for 1 CPUs and 3 GPUs" in message
    assert "4 CPUs and 2 GPUs" in message
    assert "tokenize data" not in message
