"""Evaluating a family on one and on two workers: seconds from the first evaluation's start to the last one's end.

A small family is trained once; then its evaluations alone are run again, on one CPU and on two in turns. Each figure is
the median of three. Each worker loads its libraries within that time, as in a run: with small evaluations that is
most of it, and a second worker cannot help.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from boomspec.core.graph_file import read_graph
from boomspec.store import FolderStore, Store
from tests.runners import small

LAYERS = 8


def family(folder: Path) -> tuple[Path, Store]:
    pretrain = {"layers": LAYERS, "hidden_size": 192, "intermediate_size": 512, "attention_heads": 4}
    spec = small.write_spec(
        folder,
        teacher={"pretrain": pretrain},
        student={"keep": list(range(0, LAYERS, 2))},
        data={"sequence_length": 64, "held_out": {"every": 2}},
        evaluate={"held_out": {"max_tokens": 40_000}},
        baselines=["naive_pruning"],
    )
    texts = sorted((folder / "texts").iterdir())
    for path in texts:
        path.write_text(path.read_text() * 20)
    store = FolderStore(folder / "store")
    graph = small.compiled(spec, store).graph
    graph.write(folder / "graph.json")
    return folder / "graph.json", store


def evaluated(graph: Path, store: Store, cpus: int) -> tuple[int, float]:
    """Run what is missing; how many evaluations that were, and the seconds that they took together."""
    command = [sys.executable, "-m", "runners", str(graph), "--store", str(store.root), "--plain", "--cpus", str(cpus)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    read = read_graph(graph)
    folder = store.run_folder(read.name, read.id)
    lines = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    last = [e for e in lines if e["run"] == lines[-1]["run"] and e.get("name", "").startswith("evaluate")]
    ends = [e["time"] for e in last if e["event"] == "task_finished"]
    starts = [e["time"] - e["seconds"] for e in last if e["event"] == "task_finished"]
    return len(ends), max(ends) - min(starts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=3)
    turns = parser.parse_args().turns
    with tempfile.TemporaryDirectory() as temporary:
        graph, store = family(Path(temporary))
        evaluated(graph, store, 2)
        found: dict[int, list[float]] = {1: [], 2: []}
        for _ in range(turns):
            for cpus, seconds in found.items():
                for kind in ("evaluate", "report"):
                    shutil.rmtree(store.root / kind)
                count, took = evaluated(graph, store, cpus)
                seconds.append(took)
    one, two = (statistics.median(found[cpus]) for cpus in (1, 2))
    print(f"{count} evaluations of a family of {LAYERS} layers, 40,000 tokens each, median of {turns} in turns")
    print(f"  on 1 worker   {one:6.1f} s")
    print(f"  on 2 workers  {two:6.1f} s  ({one / two:.2f} times as fast)")


if __name__ == "__main__":
    main()
