"""Kill a random process of a cluster at a random time, again and again: how often is the outcome right, and how much
work is done twice?

A small experiment (a teacher, a distillation, a size between them) runs on a cluster of a head and two machines, which
are raylets of this one; in turns its command runs here and as a job on the head, and every other two runs distil with
two workers. SIGKILL ends a worker, a raylet, a machine with all of its processes, the cluster's own services, the head
machine, a job's supervisor, or the driver. What a person or a cluster manager would start again is started again: the
machine, the head with a new cluster, the command. At every kill each artifact that can be read is held against its
checksums; at the end of each run every artifact against that of an undisturbed run. A command that ends before all is
made is wrong, too, unless its driver or what that stands on was killed: whatever else is, it must go on.

    python -m tests.benchmarks.chaos [--kills 50] [--seed 0]

Exits with 1 when an outcome was wrong.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from boomspec.store import FolderStore, Store
from tests.benchmarks.victims import DRIVERS_OWN, KINDS, PERHAPS_DRIVERS, WEIGHTS, Cluster, candidates
from tests.runners.trouble import Trouble, broken, checksums, parsed, unfinished

STEPS = {1: 2000, 2: 600}  # of the distillation, which is most of a run's time, by its workers
KILLS = (4, 9)  # in one run
PAUSE_SECONDS = 6.0  # between two kills, on average
PATIENCE_SECONDS = 900.0  # for one run, however disturbed
RETRIES = 20  # of a task: more than there are kills in a run, so that none may give up


@dataclass
class Run:
    """One run of the experiment under fire, to its end."""

    trouble: Trouble
    store: Store
    as_job: bool
    commands: int = 0
    kills: int = 0
    struck: set[str] = field(default_factory=set)  # what was killed under the last command
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0
    process: subprocess.Popen[bytes] | None = None
    seen: bool = False  # the driver of a job
    since: float = 0.0

    def follow(self, cluster: Cluster) -> bool:
        """Start the command (again) where its driver is gone. Returns whether everything is made, and it is gone."""
        if self._driving(cluster):
            return False
        if all(self.store.has(self.trouble.graph.nodes[i].task.kind, i) for i in self.trouble.graph.targets):
            return True
        if self.commands and self._gave_up():
            self.wrong.append(f"command {self.commands} gave up, and nothing was killed that it needs: {self.struck}")
        self.commands += 1
        self.since, self.seen, self.struck = time.monotonic(), False, set()
        log = self.log.open("ab")
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

    def _gave_up(self) -> bool:
        """Whether the last command has ended, before all was made, without having lost what it stands on."""
        events = self.trouble.events(self.store)
        said_so = bool(events) and events[-1]["event"] == "run_finished"
        return not self.struck & DRIVERS_OWN and (said_so or not self.struck & PERHAPS_DRIVERS)

    @property
    def driver(self) -> int | None:
        """The process of the driver, where it is not a job's."""
        working = self.process is not None and self.process.poll() is None and not self.as_job
        return self.process.pid if self.process is not None and working else None

    @property
    def log(self) -> Path:
        """What its commands print; of jobs, that they were submitted."""
        return self.store.root.with_name(f"{self.store.root.name}.txt")

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


def strike(cluster: Cluster, run: Run, numbers: random.Random) -> str | None:
    """Kill something; what it was. None where it had ended before."""
    found: dict[str, list[Callable[[], bool]]] = {}
    for name, kill in candidates(cluster, run.driver):
        found.setdefault(name, []).append(kill)
    name = numbers.choices(list(found), [WEIGHTS[name] for name in found])[0]
    run.struck.add(name)
    if not numbers.choice(found[name])():
        return None
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
        elif note.startswith("continues after step "):
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
            workers = 1 + number // 2 % 2
            more = {"workers": 2} if workers == 2 else {}
            trouble = Trouble(
                folder / f"experiment{number}", kinds=KINDS, steps=STEPS[workers], retries=RETRIES, **more
            )
            if workers not in expected:
                cluster.mend()
                store, before = FolderStore(folder / f"undisturbed{workers}"), time.monotonic()
                trouble.run(cluster.grid, store)
                expected[workers] = checksums(store)
                print(f"undisturbed, distilled by {workers}: {time.monotonic() - before:.0f} s", flush=True)
            run = Run(trouble, FolderStore(folder / f"store{number}"), as_job=number % 2 == 1)
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
            if run.wrong:
                print(run.log.read_text()[-3000:])
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
            if (name := strike(cluster, run, numbers)) is not None:
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
