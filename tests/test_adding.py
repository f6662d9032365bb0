"""What is added in one place works everywhere: a task kind is a record and a body, and needs no other edit."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
RECORD = '''
"""The toy kind `echo`: a text, repeated, behind that of its input."""

from typing import ClassVar

from boomspec.core.tasks.cost import Cost, Prices
from boomspec.core.tasks.record import Record


class Echo(Record):
    """Inputs: `before`, another echo, or none."""

    kind: ClassVar[str] = "echo"
    version: ClassVar[int] = 1
    reads_models: ClassVar[bool] = False

    text: str
    times: int

    def cost(self, prices: Prices) -> Cost:
        return Cost(flops=1_500_000_000 * self.times, disk=len(self.text) * self.times)
'''
BODY = '''
"""Write a text several times, behind that of the input."""

from boomspec.core.tasks.echo import Echo
from runners.runtime.context import Context


def run(context: Context[Echo]) -> None:
    before = "".join((given.folder / "echo.txt").read_text() for given in context.inputs.values())
    (context.path / "echo.txt").write_text(before + context.record.text * context.record.times)
'''
GRAPH = """
import sys
from boomspec.compile.compiler import Compiled
from boomspec.compile.cost.pricing import priced
from boomspec.core.graph import Experiment, Node, Task, TaskGraph
from boomspec.core.tasks.echo import Echo
from boomspec.plan.forecast import Machine, forecast
from boomspec.plan.plan import needed
from boomspec.plan.plan_text import print_plan
from boomspec.store import open_store
from pathlib import Path

first = Task(Echo(text="hello ", times=2), {})
second = Task(Echo(text="world ", times=1), {"before": first.id})
nodes = {task.id: Node(task, name) for name, task in {"first": first, "second": second}.items()}
experiment = Experiment("", {}, {node.name: i for i, node in nodes.items()}, {})
graph = TaskGraph("toy", priced(nodes, {}, {}), {}, (second.id,), experiments=(experiment,))
graph.write(Path("graph.json"))
store = open_store("store")
plan = needed(graph, store)
print_plan(Compiled(graph, {}, ()), plan, forecast(graph, plan, store, Machine(1, 0, None)), store)
"""


def test_a_toy_kind_is_planned_run_reused_and_verified(tmp_path: Path) -> None:
    for package in ("boomspec", "runners"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "boomspec/core/tasks/echo.py").write_text(RECORD)
    (tmp_path / "runners/tasks/echo.py").write_text(BODY)

    def python(*arguments: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(tmp_path), "HOME": str(tmp_path), "COLUMNS": "120"}
        done = subprocess.run(
            [sys.executable, "-W", "error", *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    planned = python("-c", GRAPH)
    assert " 3G " in next(line for line in planned.splitlines() if "first" in line)
    assert " 1.5G " in next(line for line in planned.splitlines() if "second" in line)
    assert "2 to run" in planned
    run = ("-m", "runners", "graph.json", "--store", "store", "--cpus", "1", "--plain")
    python(*run)
    (made,) = [path for path in (tmp_path / "store/echo").glob("*/echo.txt") if path.read_text().endswith("world ")]
    assert made.read_text() == "hello hello world "
    assert json.loads((made.parent / "artifact.json").read_text())["task"]["kind"] == "echo"
    assert "0 to run, 2 to reuse" in python("-c", GRAPH)
    assert "reused 2  made 0" in python(*run)
    assert "identical" in python("-m", "runners.cli.verify", "graph.json", "--store", "store", "--cpus", "1", "--plain")
