"""Kill a random process of a cluster at a random time, again and again: how often is the outcome right, and how much
work is done twice?

A small experiment (a teacher, a distillation, a size between them) runs on a cluster of a head and two machines, which
are raylets of this one; in turns its command runs here, runs as a job on the head, and runs here with a distillation by
two workers. SIGKILL ends a worker, a raylet, a machine with all of its processes, the cluster's own services, the head
machine, a job's supervisor, or the driver. What a person or a cluster manager would start again is started again: the
machine, the head with a new cluster, the command. At every kill each artifact that can be read is held against its
checksums; at the end of each run every artifact against that of an undisturbed run.

    python -m tests.benchmarks.chaos [--kills 50] [--seed 0]

Exits with 1 when an outcome was wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from boomspec.store import Store
from tests.runners.grid import Grid, Machine, grid
from tests.runners.trouble import Trouble, broken, checksums, parsed, unfinished

KINDS = ("tokenize", "pretrain", "distill", "interpolate")
STEPS = 2000  # of the distillation: most of a run's time
MACHINES = 2  # beside the head
KILLS = (4, 9)  # in one run
PAUSE_SECONDS = 6.0  # between two kills, on average
PATIENCE_SECONDS = 900.0  # for one run, however disturbed

# Words in the command line of the process that is killed, and how often such a one is chosen.
VICTIMS: dict[str, tuple[float, tuple[str, ...]]] = {
    "worker of a task": (6, tuple(f"ray::{kind}" for kind in KINDS)),
    "worker of a group": (3, ("ray::RayTrainWorker", "ray::_RayTrainWorker")),
    "controller of a group": (1, ("ray::TrainController",)),
    "idle worker": (1, ("ray::IDLE",)),
    "raylet": (3, ("/raylet/raylet",)),
    "agent of a machine": (1, ("ray::DashboardAgent", "ray::RuntimeEnvAgent")),
    "cluster's services (GCS)": (0.7, ("gcs_server",)),
    "job server": (0.7, ("ray::Dashboard ", "/dashboard/dashboard.py")),
    "supervisor of a job": (1, ("ray::JobSupervisor",)),
    "driver": (3, ("-m runners graph.json",)),
}
WHOLE_MACHINE, HEAD, OF_THE_HEAD = "machine with everything", "head with everything", "raylet of the head"
WEIGHTS = {name: weight for name, (weight, _) in VICTIMS.items()} | {WHOLE_MACHINE: 3, HEAD: 0.7, OF_THE_HEAD: 0.7}


@dataclass
class Cluster:
    """One that is started again when its head is gone."""

    folder: Path
    started: int = 0
    there: Grid | None = None
    _open: ExitStack = field(default_factory=ExitStack)

    @property
    def grid(self) -> Grid:
        assert self.there is not None
        return self.there

    def alive(self) -> list[Machine]:
        return [machine for machine in self.grid.machines if machine.works]

    def mend(self) -> None:
        """Start what is missing: a machine whose raylet has ended, a cluster whose head's has."""
        if self.there is None or not self.grid.machines[0].works:
            self.close()
            place = self.folder / str(self.started)
            place.mkdir()
            self.started += 1
            self.there = self._open.enter_context(grid(place))
            for _ in range(MACHINES - 1):
                self.grid.add(wait=False)
            return
        for machine in self.grid.machines[1:]:
            if not machine.works:
                machine.lose()  # what it left
                self.grid.machines.remove(machine)
                self.grid.add(wait=False)

    def close(self) -> None:
        if self.there is not None:
            for machine in reversed(self.grid.machines):
                machine.lose()
        with suppress(AssertionError):
            self._open.close()
        self._open, self.there = ExitStack(), None


@dataclass
class Run:
    """One run of the experiment under fire, to its end."""

    trouble: Trouble
    store: Store
    as_job: bool
    commands: int = 0
    kills: int = 0
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0
    process: subprocess.Popen[bytes] | None = None
    seen: bool = False  # the driver of a job
    since: float = 0.0

    def follow(self, cluster: Cluster) -> bool:
        """Start the command (again) where its driver is gone. Returns whether everything is made, and it is gone."""
        if self._driving(cluster):
            return False
        if {i for i in self.trouble.graph.targets if self.store.has(self.trouble.graph.nodes[i].task.kind, i)} == set(
            self.trouble.graph.targets
        ):
            return True
        self.commands += 1
        self.since, self.seen = time.monotonic(), False
        log = (self.store.root.parent / f"{self.store.root.name}.txt").open("ab")
        there = cluster.grid
        own = ["--store", self.store.root, "--address"]
        if self.as_job:
            command = ["-m", "boomspec", "submit", self.trouble.file, *own, there.address]
        else:
            command = ["-m", "runners", self.trouble.file, *own, there.gcs, "--plain"]
        with log:
            self.process = subprocess.Popen(
                [sys.executable, *map(str, command)], env=there.environment, stdout=log, stderr=subprocess.STDOUT
            )
        return False

    def _driving(self, cluster: Cluster) -> bool:
        if self.process is not None and self.process.poll() is None:
            return True
        if not self.as_job or self.process is None:
            return False
        jobs = [c for c in cluster.grid.machines[0].processes().values() if "-m runners graph.json" in c]
        self.seen = self.seen or bool(jobs)
        waiting = self.process.returncode == 0 and not self.seen and time.monotonic() - self.since < 60
        return bool(jobs) or waiting

    def end(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
        if self.process is not None:
            self.process.wait()


def candidates(cluster: Cluster, run: Run) -> Iterator[tuple[str, Callable[[], None]]]:
    """What could be killed now: its kind, and how it is killed."""

    def killing(process: int) -> Callable[[], None]:
        def kill() -> None:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

        return kill

    if run.process is not None and run.process.poll() is None and not run.as_job:
        yield "driver", killing(run.process.pid)
    for machine in cluster.alive():
        heads = machine is cluster.grid.machines[0]
        for process, command in machine.processes().items():
            for name, (_, words) in VICTIMS.items():
                if any(word in command for word in words):
                    yield OF_THE_HEAD if heads and name == "raylet" else name, killing(process)
                    break
        yield HEAD if heads else WHOLE_MACHINE, machine.lose


def strike(cluster: Cluster, run: Run, numbers: random.Random) -> str:
    """Kill something; what it was."""
    found: dict[str, list[Callable[[], None]]] = {}
    for name, kill in candidates(cluster, run):
        found.setdefault(name, []).append(kill)
    name = numbers.choices(list(found), [WEIGHTS[name] for name in found])[0]
    numbers.choice(found[name])()
    run.kills += 1
    run.wrong += [f"after the kill of a {name}: {what}" for what in broken(run.store)]
    return name


def work(trouble: Trouble, store: Store) -> tuple[int, int, int, int]:
    """Steps trained and steps needed; tasks started and tasks there are."""
    folder = store.run_folder(trouble.graph.name, trouble.graph.id) / "progress"
    steps = needed = started = 0
    for task_id, node in trouble.graph.nodes.items():
        file = folder / f"{task_id}.jsonl"
        lines = [parsed(line) for line in file.read_text().splitlines()] if file.exists() else []
        started += sum("started" in line for line in lines)
        recipe = getattr(node.task.record, "recipe", None)
        if recipe is None:
            continue
        needed += recipe.steps
        steps += _trained(lines, recipe.sequences * recipe.sequence_length)
    return steps, needed, started, len(trouble.graph.nodes)


def _trained(lines: list[dict[str, Any]], tokens_a_step: int) -> int:
    """Steps that were trained in all attempts together, as far as anybody was told of them."""
    steps = begin = at = 0
    for line in lines:
        note = str(line.get("note", ""))
        if "started" in line or note.startswith("trains on "):
            steps, begin, at = steps + at - begin, 0, 0
        elif note.startswith("continues behind step "):
            begin = at = int(note.split()[3])
        elif line.get("unit") == "tokens":
            at = int(line["done"]) // tokens_a_step
    return steps + at - begin


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    numbers = random.Random(options.seed)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that nothing is left at work
    folder = Path(tempfile.mkdtemp(prefix="bc", dir="/tmp"))  # Ray's sockets want a short path
    cluster = Cluster(folder)
    killed: Counter[str] = Counter()
    runs: list[Run] = []
    try:
        expected: dict[int, dict[str, Any]] = {}
        while sum(killed.values()) < options.kills:
            number = len(runs)
            workers = 2 if number % 3 == 2 else 1
            more = {"workers": 2} if workers == 2 else {}
            trouble = Trouble(folder / f"experiment{number}", kinds=KINDS, steps=STEPS, **more)
            if workers not in expected:
                cluster.mend()
                store, before = Store(folder / f"undisturbed{workers}"), time.monotonic()
                trouble.run(cluster.grid, store)
                expected[workers] = checksums(store)
                print(f"undisturbed, distilled by {workers}: {time.monotonic() - before:.0f} s", flush=True)
            run = Run(trouble, Store(folder / f"store{number}"), as_job=number % 3 == 1)
            runs.append(run)
            under_fire(cluster, run, numbers, killed, options.kills)
            if checksums(run.store) != expected[workers]:
                run.wrong.append("its artifacts are not those of an undisturbed run")
            run.wrong += broken(run.store) + [f"left behind: {name}" for name in unfinished(run.store)]
            steps, needed, started, tasks = work(run.trouble, run.store)
            print(
                f"run {number}: {run.kills} kills, {run.commands} commands, {run.seconds:.0f} s, {steps} steps for "
                f"{needed}, {started} tasks begun for {tasks}: {'WRONG' if run.wrong else 'right'}",
                flush=True,
            )
            for what in run.wrong:
                print(f"  WRONG {what}", flush=True)
                print((folder / f"store{number}.txt").read_text()[-3000:])
        return report(runs, killed)
    finally:
        for run in runs:
            run.end()
        cluster.close()
        shutil.rmtree(folder, ignore_errors=True)


def under_fire(cluster: Cluster, run: Run, numbers: random.Random, killed: Counter[str], most: int) -> None:
    """Follow one run to its end, and kill on the way."""
    begin = time.monotonic()
    left = min(numbers.randint(*KILLS), most - sum(killed.values()))
    due = begin + numbers.expovariate(1 / PAUSE_SECONDS)
    while time.monotonic() - begin < PATIENCE_SECONDS:
        cluster.mend()
        if run.follow(cluster):
            break
        if left and time.monotonic() >= due:
            name = strike(cluster, run, numbers)
            killed[name] += 1
            left -= 1
            print(f"  {time.monotonic() - begin:5.0f} s  killed: {name}", flush=True)
            due = time.monotonic() + numbers.expovariate(1 / PAUSE_SECONDS)
        time.sleep(0.3)
    else:
        run.wrong.append(f"it has not ended within {PATIENCE_SECONDS:.0f} seconds")
    run.end()
    run.seconds = time.monotonic() - begin


def report(runs: list[Run], killed: Counter[str]) -> int:
    total, right = sum(killed.values()), sum(not run.wrong for run in runs)
    amounts = [work(run.trouble, run.store) for run in runs]
    steps, needed, started, tasks = (sum(column) for column in zip(*amounts, strict=True))
    print(f"\n{total} kills in {len(runs)} runs, {right} of which ended with the artifacts of an undisturbed run")
    for name, count in killed.most_common():
        print(f"  {count:4} x {name}")
    print(f"  commands given: {sum(run.commands for run in runs)}, of which {len(runs)} are the first of a run")
    print(
        f"  training steps: {steps} for {needed}: {(steps - needed) / needed:.1%} repeated, "
        f"{(steps - needed) / total:.1f} for each kill"
    )
    print(f"  tasks begun:    {started} for {tasks} ({(started - tasks) / total:.2f} more a kill)")
    print(json.dumps({"kills": total, "runs": len(runs), "right": right}))
    return 0 if right == len(runs) else 1


if __name__ == "__main__":
    sys.exit(main())
