"""What is added in one place works everywhere, with no other edit: a task kind, a loss, a family's row."""

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.messages import wording
from tests.runners import small

ROOT = Path(__file__).parent.parent
RECORD = '''
"""The toy kind `echo`: a text, repeated, behind that of its input."""

from boomspec.core.tasks.record import Cost, Prices, Record


class Echo(Record):
    """Inputs: `before`, another echo, or none."""

    kind, version = "echo", 1
    reads_models = False

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
STORY = """
import os
from contextlib import chdir
from pathlib import Path
from boomspec.compile.compiler import Compiled
from boomspec.compile.cost.pricing import priced
from boomspec.core.graph import Experiment, Node, Task, TaskGraph
from boomspec.core.tasks.echo import Echo
from boomspec.plan.forecast import MachineSpec, forecast
from boomspec.plan.plan import plan_tasks
from boomspec.plan.plan_text import print_plan
from boomspec.store import open_store
from runners.cli import run, verify
from runners.cluster.ray_cluster import cluster

first = Task(Echo(text="hello ", times=2), {})
second = Task(Echo(text="world ", times=1), {"before": first.id})
nodes = {task.id: Node(task, name) for name, task in {"first": first, "second": second}.items()}
experiment = Experiment("", {}, {node.name: i for i, node in nodes.items()}, {})
graph = TaskGraph("toy", priced(nodes, {}, {}), {}, (second.id,), experiments=(experiment,))
graph.write(Path("graph.json"))
store = open_store("store")
command = [os.path.abspath("graph.json"), "--store", os.path.abspath("store"), "--plain"]

def plan():
    plan = plan_tasks(graph, store)
    print_plan(Compiled(graph, {}, ()), plan, forecast(graph, plan, store, MachineSpec(1, 0, None)), store)
    print("---")

plan()
with cluster(cpus=1), chdir("."):  # a run changes the folder
    for main in (run.main, run.main, verify.main):
        assert main(command) == 0
        print("---")
plan()
"""


@pytest.fixture
def python(tmp_path: Path) -> Callable[..., str]:
    """A copy of both packages is in `tmp_path`; run Python on it, which must succeed. Returns what it prints."""
    for package in ("boomspec", "runners"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))

    def run(*arguments: str) -> str:
        path = os.pathsep.join(map(str, (tmp_path, ROOT)))  # the second for the tests' own modules
        environment = {**os.environ, "PYTHONPATH": path, "HOME": str(tmp_path), "COLUMNS": "120"}
        done = subprocess.run(
            [sys.executable, "-W", "error", *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def test_a_toy_kind_is_planned_run_reused_and_verified(tmp_path: Path, python: Callable[..., str]) -> None:
    (tmp_path / "boomspec/core/tasks/echo.py").write_text(RECORD)
    (tmp_path / "runners/tasks/echo.py").write_text(BODY)
    planned, _, again, verified, then, _ = python("-W", "default", "-c", STORY).split("---")
    assert " 3G " in next(line for line in planned.splitlines() if "first" in line)
    assert " 1.5G " in next(line for line in planned.splitlines() if "second" in line)
    assert "2 to run" in planned
    (made,) = [path for path in (tmp_path / "store/echo").glob("*/echo.txt") if path.read_text().endswith("world ")]
    assert made.read_text() == "hello hello world "
    assert json.loads((made.parent / "artifact.json").read_text())["task"]["kind"] == "echo"
    assert wording("adding.run_reuse") in then
    assert "reused 2  made 0" in again
    assert "identical" in verified


LOSS = '''
"""The total variation distance of the student's next-token distribution from the teacher's."""

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from boomspec.core.losses.loss import Loss

if TYPE_CHECKING:
    from torch import Tensor


class TotalVariation(Loss):
    """`1/2 sum |p - q|` of the next-token distributions."""

    kind, title, unit = "total_variation", "total variation", "probability"
    reads = ("logits", "teacher_logits")
    description = "On the teacher's probabilities."
    working, kept = 4, 2

    scale: Annotated[float, Field(gt=0, description="Both logits are multiplied by it.")] = 1.0

    def formula(self, logits_NV: "Tensor", teacher_logits_NV: "Tensor") -> "Tensor":
        p_NV, q_NV = ((self.scale * logits.float()).softmax(-1) for logits in (teacher_logits_NV, logits_NV))
        return (p_NV - q_NV).abs().sum(-1) / 2
'''
COMMANDS = """
import json, sys
from click.testing import CliRunner
from boomspec.commands.cli import main

for words in ("validate", "schema", "show --json", "plan --json"):
    name, *options = words.split()
    given = [name, *["spec.yaml"] * (name != "schema"), *options]
    print(CliRunner().invoke(main, given, catch_exceptions=False).stdout)
    print("---")
"""
MADE = """
import json
from pathlib import Path
from boomspec.store import FolderStore
from tests.runners import small
from runners.report.process_figures import training_figure
from runners.report.study import TrainingCurves

store = FolderStore("store")
small.execute(small.compiled(Path("spec.yaml"), store).graph, store)
(metrics,) = store.root.glob("distill/*/metrics.jsonl")
steps = tuple(json.loads(line) for line in metrics.open())
panels = training_figure(TrainingCurves("student", steps, ())).panels
print([(panel.title, panel.below) for panel in panels])
"""


def test_a_toy_loss_is_validated_priced_distilled_and_reported(tmp_path: Path, python: Callable[..., str]) -> None:
    (tmp_path / "boomspec/core/losses/total_variation.py").write_text(LOSS)
    small.write_spec(tmp_path, distill={"losses": {"total_variation": {"weight": 2.0, "scale": 0.5}}})
    valid, schema, shown, plan, _ = python("-c", COMMANDS).split("---\n")
    assert valid.strip() == "spec.yaml: valid"
    assert "total_variation" in schema
    (experiment,) = json.loads(shown)["experiments"]
    assert experiment["meaning"]["distill"]["losses"] == {"total_variation": {"weight": 2.0, "scale": 0.5}}
    (distill,) = [task for task in json.loads(plan)["tasks"] if task["kind"] == "distill"]
    assert {"head", "teacher"} <= distill["cost"]["memory"].keys()

    assert "('total variation', 'probability')" in python("-W", "default", "-c", MADE)
    (metrics,) = (tmp_path / "store/distill").glob("*/metrics.jsonl")
    steps = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert all(0 < step["total_variation"] < 1 for step in steps)
    assert all(step["loss"] == pytest.approx(2 * step["total_variation"]) for step in steps)
    (table,) = (tmp_path / "store/report").glob("*/results.csv")
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert {"teacher", "student", "interpolated"} <= {row["series"] for row in rows}


ROW = """
FAMILIES["toy"] = FamilyRules(
    renamed=((r"^decoder\\.", "model."),),
    dropped=r"\\.mask$",
    tied=True,
    by_place=("only the first layer has a bias", lambda i, n, config: i == 0),
)
"""
FAMILY = """
import json
import torch
from pathlib import Path
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from boomspec.core.errors import BoomspecError
from boomspec.core.layers import read_layers, teacher_layers
from boomspec.models.facts import read_facts
from boomspec.models.fit import plan_entries
from runners.assembly.assemble import assemble
from runners.modeling.model_config import plan_config


class ToyConfig(LlamaConfig):
    model_type = "toy"


class ToyForCausalLM(LlamaForCausalLM):
    config_class = ToyConfig


AutoConfig.register("toy", ToyConfig)
AutoModelForCausalLM.register(ToyConfig, ToyForCausalLM)
sizes = dict(vocab_size=32, hidden_size=8, intermediate_size=16, num_attention_heads=2, num_key_value_heads=2)
teacher = ToyForCausalLM(ToyConfig(**sizes, num_hidden_layers=6, tie_word_embeddings=True)).eval()
teacher.save_pretrained("teacher")
config = json.loads(Path("teacher/config.json").read_text())
del config["tie_word_embeddings"]
Path("teacher/config.json").write_text(json.dumps(config))
saved = load_file("teacher/model.safetensors")
stored = {name.replace("model.", "decoder.", 1): tensor for name, tensor in saved.items()}
stored["decoder.layers.0.mask"] = torch.ones(2)
save_file(stored, "teacher/model.safetensors", metadata={"format": "pt"})

facts = read_facts(Path("teacher"))
assert (facts.prefix, facts.count, facts.tied, facts.head) == ("model.layers", 6, True, ()), facts
assert not any("mask" in entry.name for entry in facts.tensors(range(6), tied=True))
plan = teacher_layers((0, 2, 5))
names = {entry.name for entry in plan_entries(facts, facts, plan, tied=True)}
assert names == {name for name in saved if ".layers." not in name or name.split(".")[2] in "012"}, names
assemble({"t": Path("teacher")}, plan, Path("student"), tied=True)
student = AutoModelForCausalLM.from_pretrained("student")
assert type(student) is ToyForCausalLM
tokens_BT = torch.arange(10).reshape(2, 5)
kept = torch.nn.ModuleList(teacher.model.layers[i] for i in (0, 2, 5))
teacher.model.layers, teacher.model.config.num_hidden_layers = kept, 3
assert torch.equal(student(tokens_BT, use_cache=False).logits, teacher(tokens_BT, use_cache=False).logits)
try:
    plan_config({"t": facts}, teacher_layers((0, 1, 0)), tied=True, base="t")
except BoomspecError as error:
    print(error)
"""


def test_a_toy_family_is_read_planned_and_assembled_by_its_row(tmp_path: Path, python: Callable[..., str]) -> None:
    with (tmp_path / "boomspec/models/families.py").open("a") as file:
        file.write(ROW)
    assert wording("adding.under_only_first_layer", name="toy") in python("-c", FAMILY)
