"""How long `boomspec validate` takes, beside an interpreter that imports its three libraries and does nothing.

Run: python tests/benchmarks/startup.py. The commands take turns; the medians of whole processes are printed.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

SPEC = Path(__file__).parents[2] / "specs" / "quickstart.yaml"
COMMANDS = {
    "boomspec validate": ["-m", "boomspec", "validate", str(SPEC)],
    "import pydantic, yaml, click": ["-c", "import pydantic.fields, yaml, click"],
}
ROUNDS = 9


def main() -> None:
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(ROUNDS + 1):
        for name, arguments in COMMANDS.items():
            started = time.perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
            seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(times[1:]) for name, times in seconds.items()}  # the first one warms up
    for name, median in medians.items():
        print(f"{name:30} {median:.2f} s (median of {ROUNDS})")
    validate, bare = medians.values()
    print(f"ratio {validate / bare:.1f}")


if __name__ == "__main__":
    main()
