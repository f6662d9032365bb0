"""A distillation on two workers whose runs are disturbed: what test_many_workers.py looks at."""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import load_file

from boomspec.core.execution import Execution, read_options
from boomspec.core.graph import Node, Source, Task, TaskGraph
from boomspec.core.identity import file_digest
from boomspec.core.losses import KL, CrossEntropy, HiddenCosine, Losses
from boomspec.core.tasks import Distill
from boomspec.store import FolderStore
from runners.runtime.context import Context
from runners.runtime.job import Input, Job
from runners.tasks import distill
from tests.runners import tiny
from tests.runners.corpora import record, wait_until, write_texts
from tests.runners.small import execute_one
from tests.runners.story import MARK, processes_of

STEPS = 120
VOCABULARY = 300


class GroupStory:
    def __init__(self, folder: Path, temporary: Path) -> None:
        self.folder, self.temporary, self.store = folder, temporary, FolderStore(folder / "store")
        self.home = folder / "home"
        self.home.mkdir()
        self.environment = {**os.environ, "HOME": str(self.home), "TMPDIR": str(temporary), MARK: str(folder)}
        self.environment["RAY_USAGE_STATS_ENABLED"] = "0"
        text = write_texts(folder / "texts")
        tokens = Task(record(), {"text": text.id})
        self.teacher = _teacher(folder / "teacher")
        losses = Losses(cross_entropy=CrossEntropy(), kl=KL(), hidden_cosine=HiddenCosine())
        recipe = tiny.recipe(steps=STEPS, sequences=5, optimizer={"eps": 1e-3, "lr": 1e-3})
        student = Distill(kept=(0, 2, 3), initial="teacher", train_embedding=True, losses=losses, recipe=recipe)
        self.task = Task(student, {"teacher": self.teacher.id, "tokens": tokens.id})
        options = {"workers": 2, "min_workers": 1, "parallel": "fsdp", "teacher": "sharded", "micro_batch": 2}
        options["checkpoint_seconds"] = 0.2
        nodes = [Node(tokens, "tokens"), Node(self.task, "distill", Execution(**read_options(options)))]
        sources = {text.id: text, self.teacher.id: self.teacher}
        self.graph = TaskGraph("many", {node.id: node for node in nodes}, sources, (self.task.id,))
        self.graph.write(folder / "graph.json")
        self.run_folder = self.store.run_folder("many", self.graph.id)
        self._tokenize(nodes[0], text)
        self.tokens = self.store.path("tokenize", tokens.id)

    def _tokenize(self, node: Node, text: Source) -> None:
        for name in ("logs", "progress"):
            (self.run_folder / name).mkdir(parents=True, exist_ok=True)
        inputs = {"text": Input(text.id, source=text)}
        where = self.store.address
        job = Job(
            node, inputs, {}, store=where, reads=where, run_folder=self.run_folder, run="", commit=None, hub=False
        )
        assert execute_one(job).state == "made"

    def start(self, *options: str, **variables: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "runners", self.folder / "graph.json", "--store", self.store.root, *options]
        return subprocess.Popen(
            command,
            env=self.environment | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def reference(self, folder: Path, *, resume: Path | None = None) -> Context[Any]:
        """The same distillation by one worker, in this process."""
        context = tiny.context(folder, self.task.record, resume=resume, tokens=self.tokens)
        context.inputs["teacher"] = Input(self.teacher.id, source=self.teacher)
        distill.run(context)
        return context

    @property
    def artifact(self) -> Path:
        return self.store.path("distill", self.task.id)

    @property
    def resume(self) -> Path:
        return self.store.resume("distill", self.task.id)

    def events(self) -> list[dict[str, Any]]:
        """Those of the last run."""
        file = self.run_folder / "events.jsonl"
        lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        return [line for line in lines if line["run"] == lines[-1]["run"]]

    def notes(self) -> list[str]:
        return [line["message"] for line in self.events() if line["event"] == "note" and "name" in line]

    def groups(self) -> list[list[int]]:
        """Process ids of the workers of each group of the last run."""
        started = [note for note in self.notes() if note.startswith("trains on ")]
        return [[int(pid) for pid in re.findall(r"process (\d+)", note)] for note in started]

    def checkpoint(self) -> int:
        """The step behind which the newest checkpoint is; 0 where there is none."""
        return max((int(place.name[5:]) for place in self.resume.glob("step-*")), default=0)

    def wait_for_a_checkpoint(self, process: subprocess.Popen[str], *, groups: int) -> int:
        """Wait until a group has written one of its own; returns its step."""
        wait_until(lambda: len(self.groups()) >= groups or process.poll() is not None)
        before = self.checkpoint()
        wait_until(lambda: self.checkpoint() > before or process.poll() is not None)
        assert process.poll() is None, process.communicate()[0]
        return self.checkpoint()

    def controller(self) -> int:
        """The process of Ray Train's controller."""
        found = [p for p in psutil.process_iter(["cmdline"]) if "TrainController" in " ".join(p.info["cmdline"] or [])]
        return next(p.pid for p in found if p.environ().get(MARK) == str(self.folder))

    def alive(self) -> list[str]:
        return processes_of(str(self.folder))


def differing(one: Path, other: Path) -> list[str]:
    """Tensors of two model files that are not equal within the rounding of fp32."""
    left, right = load_file(one), load_file(other)
    assert left.keys() == right.keys()
    return [name for name in left if not torch.allclose(left[name], right[name], rtol=1e-4, atol=2e-5)]


def _teacher(folder: Path) -> Source:
    tiny.model(layers=4, seed=3, vocab_size=VOCABULARY, tie_word_embeddings=True).save_pretrained(folder)
    files = {file.name: file_digest(file) for file in sorted(folder.iterdir())}
    return Source("model", {"sha256": files}, {"folder": str(folder)})


@contextmanager
def two_machines(story: GroupStory) -> Iterator[tuple[str, dict[str, str], Callable[[], None]]]:
    """A Ray cluster of two nodes with a CPU each: its address, the environment of its users, a way to lose one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    variables = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    common = ["--block", "--num-cpus=1", "--object-store-memory=100000000"]
    head = ["--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={story.temporary}"]
    nodes: list[subprocess.Popen[str]] = []
    try:
        for own in (head, [f"--address=127.0.0.1:{port}"]):
            node = subprocess.Popen(
                [Path(sys.executable).with_name("ray"), "start", *own, *common],
                env=story.environment | variables,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
            nodes.append(node)
            assert node.stdout is not None
            said: list[str] = []
            assert any("will now block" in line for line in node.stdout if said.append(line) is None), "".join(said)
        yield f"127.0.0.1:{port}", variables, lambda: os.killpg(nodes[1].pid, signal.SIGKILL)
    finally:
        for node in reversed(nodes):
            node.terminate()
            node.communicate(timeout=60)
