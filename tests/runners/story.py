"""A graph whose run can be disturbed in the middle, and what runs of it leave behind. See test_executor.py."""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from boomspec.core.execution import Execution
from boomspec.core.graph import Cost, Node, Task, TaskGraph
from boomspec.core.tasks import Architecture, Cell, Evaluate, HeldOut, Pretrain, Record, Report
from boomspec.store import FolderStore
from boomspec.store.runs import past_runs
from runners.tasks import tokenize
from tests.runners import tiny
from tests.runners.corpora import as_pipe, context, feed, record, tokenizer_source, write_jsonl, write_texts

SECRETS = {"HF_TOKEN": "hf_0123456789abcdef", "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG/bPxRfiCY"}
TEXTS = [f"document number {index}, which is one of many\n" * 5 for index in range(12)]
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
        self.seen: list[str] = []
        self.home = folder / "home"
        self.home.mkdir()
        self.store = FolderStore(folder / "store")
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
        teacher = Task(pretraining(), {"tokens": bad.id})
        score = Task(
            Evaluate(measure=HeldOut(sequence_length=16), precision="fp32"), {"model": teacher.id, "tokens": bad.id}
        )
        report = Task(reporting(), {"teacher-held_out": score.id})
        endless = write_texts(folder / "endless", ["nobody feeds this pipe"])
        self.fragile = Task(record(held_out_every=0), {"text": endless.id})
        broken = Task(pretraining(), {"tokens": self.fragile.id})
        named = {"good tokens": self.good, "bad tokens": bad, "teacher": teacher, "score": score, "report": report}
        # There is one CPU, and the largest task starts first.
        nodes = {
            task.id: Node(task, name, cost=Cost(flops=10**9 * (task == self.good))) for name, task in named.items()
        }
        nodes[self.fragile.id] = Node(self.fragile, "fragile tokens", Execution(retries=0), Cost())
        nodes[broken.id] = Node(broken, "fragile teacher", cost=Cost())
        sources = {source.id: source for source in (text, tokenizer, rows, endless)}
        self.graph = TaskGraph("story", nodes, sources, (self.good.id, report.id, broken.id))
        self.graph.write(folder / "graph.json")
        only_good = TaskGraph("good", {self.good.id: nodes[self.good.id]}, sources, (self.good.id,))
        only_good.write(folder / "good.json")
        self.run_folder = self.store.run_folder("story", self.graph.id)
        as_pipe(Path(endless.location["files"][0]))
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

    def look(self) -> None:
        """Note what `boomspec runs` says of the run now."""
        self.seen += [run.state for run in past_runs(self.store) if run.folder == self.run_folder]

    def feed(self, start: int, end: int) -> None:
        for pipe, content in self.pipes[start:end]:
            feed(pipe, content)

    def workers(self, task: Task) -> list[int]:
        """The processes that have started on a task."""
        file = self.run_folder / "progress" / f"{task.id}.jsonl"
        lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        return [line["started"]["pid"] for line in lines if "started" in line]

    def ended(self, process: subprocess.Popen[str]) -> Ran:
        output, _ = process.communicate(timeout=300)
        tokens = self.store.root / "tokenize"
        names = sorted(path.name for path in tokens.iterdir()) if tokens.exists() else []
        events = self.run_folder / "events.jsonl"
        lines = [json.loads(line) for line in events.read_text().splitlines()]
        return Ran(
            code=process.returncode,
            output=output,
            artifacts={name for name in names if not name.startswith(".")},
            workspaces=[name for name in names if name.startswith(".") and not name.endswith(".resume")],
            processes=processes_of(self.mark),
            temporary=sorted(path.name for path in self.temporary.iterdir()),
            events=[line for line in lines if line["run"] == lines[-1]["run"]],
        )


def pretraining() -> Record:
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


def reporting() -> Record:
    cell = Cell(series="teacher", layers=2, parameters=9000, bytes=36000, measure="held_out", input="teacher-held_out")
    return Report(cells=(cell,), trainings={})


def processes_of(mark: str, *, grace_seconds: float = 10) -> list[str]:
    """Command lines of the processes that carry the mark in their environment and do not end by themselves soon."""
    end = time.monotonic() + grace_seconds
    while (found := _carrying(mark)) and time.monotonic() < end:
        time.sleep(0.1)
    return found


def _carrying(mark: str) -> list[str]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue  # it has ended, or is not ours
    return found


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
