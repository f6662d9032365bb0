"""How long `boomspec validate` takes, beside an interpreter that imports its three libraries and does nothing.

And `boomspec plan`, with a teacher of 30 layers in a folder. Run: python -m tests.benchmarks.startup. The commands take
turns; the medians of whole processes are printed, and the processor time of the same, which depends less on whatever
else the machine does. All have their modules compiled, as Python and pip leave them.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.boomspec.model_folders import llama

SPEC = Path(__file__).parents[2] / "specs" / "quickstart.yaml"
LOCAL = """\
boomspec: 1
name: local
teacher: {model: ./teacher}
student: {keep: {every: 2}}
data: {files: "*.txt", sequence_length: 8, held_out: {every: 4}}
distill: {tokens: 512, batch_tokens: 64, losses: {cross_entropy: {weight: 1}}}
evaluate: {held_out: {}}
baselines: [naive_pruning]
"""
COMMANDS = {
    "boomspec validate": ["-m", "boomspec", "validate", str(SPEC)],
    "import pydantic, yaml, click": ["-c", "import pydantic.fields, yaml, click"],
}
ROUNDS = 9


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        llama(folder / "teacher", layers=30)
        for i in range(8):
            (folder / f"{i}.txt").write_text("a document\n")
        (folder / "spec.yaml").write_text(LOCAL)
        commands = {**COMMANDS, "boomspec plan, 30 layers": ["-m", "boomspec", "plan", str(folder / "spec.yaml")]}
        measure(commands, folder / "compiled")


def measure(commands: dict[str, list[str]], compiled: Path) -> None:
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(compiled)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    cpu: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(ROUNDS + 1):
        for name, arguments in commands.items():
            started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, env=environment)
            seconds[name].append(time.perf_counter() - started)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            cpu[name].append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    medians = {name: statistics.median(times[1:]) for name, times in seconds.items()}  # the first one compiles
    by_cpu = {name: statistics.median(times[1:]) for name, times in cpu.items()}
    for name, median in medians.items():
        print(f"{name:30} {median:.2f} s, CPU {by_cpu[name]:.2f} s (medians of {ROUNDS})")
    validate, bare, _ = medians
    print(f"ratio {medians[validate] / medians[bare]:.1f}, by processor time {by_cpu[validate] / by_cpu[bare]:.1f}")


if __name__ == "__main__":
    main()
