"""How long `boomspec validate` takes, beside an interpreter that imports its three libraries and does nothing.

And `boomspec plan`, with a teacher of 30 layers in a folder. Run: python -m tests.benchmarks.startup. The commands take
turns; the medians of whole processes are printed.
"""

from __future__ import annotations

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
        measure(commands)


def measure(commands: dict[str, list[str]]) -> None:
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(ROUNDS + 1):
        for name, arguments in commands.items():
            started = time.perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
            seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(times[1:]) for name, times in seconds.items()}  # the first one warms up
    for name, median in medians.items():
        print(f"{name:30} {median:.2f} s (median of {ROUNDS})")
    validate, bare, _ = medians.values()
    print(f"ratio {validate / bare:.1f}")


if __name__ == "__main__":
    main()
