"""A small experiment whose runs get into trouble, and what they leave behind. See test_failures.py and the benchmark
chaos.py: a teacher, a distillation that writes checkpoints all the time, and the size between them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from boomspec.core.graph import TaskGraph
from boomspec.store import RECORD, FolderStore, Store
from tests.runners import small
from tests.runners.corpora import wait_until
from tests.runners.grid import MACHINE, Grid, Machine

STEPS = 400
_BATCH = 256  # tokens
_KINDS = ("tokenize", "pretrain", "distill", "interpolate")


class Trouble:
    """The graph, in `folder`; its runs are in stores of their own."""

    def __init__(
        self, folder: Path, *, kinds: Sequence[str] = _KINDS, steps: int = STEPS, retries: int = 2, **distill: Any
    ) -> None:
        distilling = {"tokens": steps * _BATCH, "batch_tokens": _BATCH}
        execution = {"retries": retries, "distill": {"checkpoint_seconds": 0.2, **distill}}
        folder.mkdir(exist_ok=True)
        spec = small.write_spec(folder, name="trouble", distill=distilling, execution=execution)
        self.folder, self._kinds = folder, kinds
        whole = small.compiled(spec, FolderStore(folder / "nothing")).graph
        nodes = {i: node for i, node in whole.nodes.items() if node.task.kind in kinds}
        targets = tuple(i for i, node in nodes.items() if node.task.kind == kinds[-1])
        self.graph = TaskGraph("trouble", nodes, whole.sources, targets)
        self.file = folder / "graph.json"
        self.graph.write(self.file)
        self.distilling = next(node.task for node in nodes.values() if node.task.kind == "distill")

    def for_machines_with(self, resource: str) -> Trouble:
        """The same tasks, of which the distillation runs only where this resource is."""
        return Trouble(self.folder / resource, kinds=self._kinds, resources={resource: 1})

    def start(self, grid: Grid, store: Store, **variables: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "runners", self.file, "--store", store.address, "--address", grid.gcs, "--plain"],
            env=grid.environment | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, grid: Grid, store: Store) -> str:
        """A run that nobody disturbs; its output."""
        process = self.start(grid, store)
        output, _ = process.communicate(timeout=600)
        assert process.returncode == 0, output
        return output

    def with_teacher(self, store: Store, root: Path) -> Store:
        """A new store that has all of another one up to the distillation."""
        for kind in ("tokenize", "pretrain"):
            shutil.copytree(store.root / kind, root / kind)
        return FolderStore(root)

    def steps(self, store: Store) -> int:
        """The step behind which the newest checkpoint is; 0 where there is none."""
        places = store.resume("distill", self.distilling.id).glob("step-*")
        return max((int(place.name[5:]) for place in places), default=0)

    def wait_for_a_checkpoint(self, store: Store, process: subprocess.Popen[str] | None = None, *, attempt: int) -> int:
        """Wait until that attempt (of all runs in this store) at the distillation has written one of its own."""

        def ended() -> bool:
            return process is not None and process.poll() is not None

        wait_until(lambda: len(self.attempts(store)) >= attempt or ended(), seconds=240)
        before = self.steps(store)
        wait_until(lambda: self.steps(store) > before or ended(), seconds=240)
        assert not ended(), process.communicate()[0] if process else ""
        return self.steps(store)

    def attempts(self, store: Store) -> list[int]:
        """The processes that have begun with the distillation, in all runs."""
        lines = [parsed(line) for line in self.progress(store).splitlines()]
        return [line["started"]["pid"] for line in lines if "started" in line]

    def progress(self, store: Store) -> str:
        """What the distillation has said about itself, in all runs."""
        folder = store.run_folder(self.graph.name, self.graph.id)
        file = folder / "progress" / f"{self.distilling.id}.jsonl"
        return file.read_text() if file.exists() else ""

    def events(self, store: Store, name: str = "") -> list[dict[str, Any]]:
        """Those of the last run; of one task where it is named."""
        file = store.run_folder(self.graph.name, self.graph.id) / "events.jsonl"
        lines = [parsed(line) for line in file.read_text().splitlines()] if file.exists() else []
        return [line for line in lines if line["run"] == lines[-1]["run"] and name in line.get("name", "")]


def parsed(line: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with suppress(ValueError):  # a process was killed while it wrote it
        found = json.loads(line)
    return found


def machine_of(grid: Grid, process: int) -> Machine:
    """The machine on which a process runs."""
    environment = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
    return next(machine for machine in grid.machines if f"{MACHINE}={machine.mark}".encode() in environment)


def checksums(store: Store) -> dict[str, Any]:
    """What every artifact says of its files, by kind and id."""
    records = sorted(store.root.glob(f"*/*/{RECORD}"))
    return {f"{path.parts[-3]}/{path.parts[-2]}": json.loads(path.read_text())["files"] for path in records}


def broken(store: Store) -> list[str]:
    """Artifacts that could be read, and are not what their record says."""
    found = [(path.parts[-3], path.parts[-2]) for path in store.root.glob(f"*/*/{RECORD}")]
    # What is being discarded, or worked on, is out of everybody's sight by its name.
    return [
        f"{kind}/{task}: {damage}"
        for kind, task in found
        if not task.startswith(".") and (damage := store.damage(kind, task, checksums=True)) is not None
    ]


def unfinished(store: Store) -> list[str]:
    """What is neither an artifact nor a whole checkpoint: folders of work, parts of checkpoints."""
    entries = [path for kind in _KINDS for path in (store.root / kind).glob("*")]
    work = [path.name for path in entries if not re.fullmatch(r"[0-9a-f]{64}|\.[0-9a-f]{64}\.resume", path.name)]
    inside = [path for path in entries if path.name.endswith(".resume") for path in path.iterdir()]
    return work + [path.name for path in inside if not path.name.startswith("step-")]


@contextmanager
def full(folder: Path) -> Iterator[None]:
    """The file system of a folder has no byte free, whatever is deleted from it."""
    done = threading.Event()
    filler = folder / "filler"

    def fill() -> None:
        with filler.open("wb", buffering=0) as file:
            while not done.is_set():
                with suppress(OSError):
                    while file.write(b"0" * 4096):
                        pass
                done.wait(0.001)

    thread = threading.Thread(target=fill)
    thread.start()
    try:
        wait_until(lambda: os.statvfs(folder).f_bavail == 0)
        yield
    finally:
        done.set()
        thread.join()
        filler.unlink()
