"""The whole way of a spec through the command line: real Ray, real models, killed at the worst moments."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from boomspec.core.graph import Cost, Node, Task
from boomspec.core.graph_file import read_graph
from boomspec.core.layers import teacher_layers
from boomspec.core.machine import installed
from boomspec.core.tasks import Interpolate
from boomspec.models.checkpoint import read_checkpoint
from boomspec.models.facts import total_bytes, total_parameters
from boomspec.plan.lock import read_lock
from boomspec.plan.rates import Rates
from boomspec.store import FolderStore
from tests.messages import wording
from tests.runners.here import boomspec

SPEC = """\
boomspec: 1
name: end-to-end
teacher:
  pretrain:
    {layers: 4, hidden_size: 32, intermediate_size: 64, attention_heads: 4, initializer_range: 0.08, tokens: 4k,
     batch_tokens: 512, optimizer: {lr: 3e-3}, precision: fp32, tokenizer: {vocabulary: 400, train_on: 100KB}}
student: {keep: 2}
data: {files: texts/*.txt, sequence_length: 64, held_out: {every: 5}}
distill:
  {tokens: 4k, batch_tokens: 512, optimizer: {lr: 1e-3}, precision: fp32}
evaluate: {held_out: {}, precision: fp32}
baselines: [naive_pruning]
execution: {cpus: 1, distill: {checkpoint_seconds: 0.3}}
"""
SEARCH = "interpolate: {order: {search: klpatch, calibration: {sequences: 2}}}\n"
LONG = SPEC.replace("{tokens: 4k", "{tokens: 120k")  # a training in whose middle one can be killed
# Read by every Python that starts: notes the processes of Ray that are the head of a cluster.
COUNTER = """
import os, sys
def note(event, arguments):
    if event == "subprocess.Popen" and "gcs_server" in str(arguments[1][0]):
        with open(os.environ["HEADS"], "a") as file:
            file.write(f"{os.getpid()}\\n")
sys.addaudithook(note)
"""


def write(folder: Path, text: str = SPEC) -> Path:
    texts = folder / "texts"
    texts.mkdir()
    for i in range(10):
        rows = [f"line {n} of text {i}: {n * n % 97} is {n} squared modulo 97\n" for n in range(i, 120 + i)]
        (texts / f"{i}.txt").write_text("".join(rows))
    spec = folder / "spec.yaml"
    spec.write_text(text)
    return spec


def counting(folder: Path) -> dict[str, str]:
    """The environment in which the heads that a command starts are counted: lines of `folder`/heads."""
    (folder / "site").mkdir(exist_ok=True)
    (folder / "site" / "sitecustomize.py").write_text(COUNTER)
    path = [str(folder / "site"), *filter(None, [os.environ.get("PYTHONPATH")])]  # an empty part is the current folder
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path), "HEADS": str(folder / "heads")}


def start(spec: Path, store: Path, **options) -> subprocess.Popen:
    command = [sys.executable, "-P", "-m", "boomspec.commands.cli", "run", str(spec), "--store", str(store), "--plain"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)


def finish(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def wait_for_distilling(store: Path, process: subprocess.Popen) -> None:
    """Return when distilling is on its way and has a checkpoint."""
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and process.poll() is None:
        if any(store.glob("distill/.*.resume/step-*/*.json")):  # a part of one is no checkpoint yet
            return
        time.sleep(0.05)
    raise AssertionError(f"distilling left no checkpoint: {process.communicate()[0]}")


def worker_at(kind: str, process: subprocess.Popen) -> psutil.Process:
    for child in psutil.Process(process.pid).children(recursive=True):
        if child.name().startswith(f"ray::{kind}") or any(a.startswith(f"ray::{kind}") for a in child.cmdline()):
            return child
    raise AssertionError(f"no worker at {kind}")


def payloads(store: Path) -> dict[str, list]:
    """For each artifact its id and the digests of its files: ids, weights, metrics, results and figures."""
    records = [json.loads(path.read_text()) for path in store.glob("*/*/artifact.json")]
    return {record["id"]: record["files"] for record in records}


@dataclass(frozen=True)
class Ran:
    folder: Path
    spec: Path
    store: Path
    output: str

    @property
    def run(self) -> Path:
        """The folder of the run with the report; another one is that of the search."""
        return Path(self.output.split("report: ")[-1].strip()).parents[1]


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ran")
    spec = write(folder, SPEC + SEARCH)
    # What lies in the folder where a command is typed must not be imported by anything.
    for name in ("boomspec", "runners"):
        (folder / name).mkdir()
    (folder / "rich.py").write_text("raise RuntimeError('a module of the person was imported')\n")
    output = finish(start(spec, folder / "store", cwd=folder, env=counting(folder)))
    return Ran(folder, spec, folder / "store", output)


def test_a_toy_does_not_make_a_plan_forecast_minutes_for_a_copy_of_seconds(ran):
    """The real seconds of sizes of some hundred kilobytes, asked about one of 17 layers and 170 MB."""
    store, size = FolderStore(ran.store), 170_000_000
    record = Interpolate(plan=teacher_layers(range(17)), tied=True)
    large = Node(Task(record, {"teacher": "t", "student": "s"}), "17 layers", cost=Cost(read=size, disk=size))
    artifacts = ran.store.glob("interpolate/*/artifact.json")
    made = [json.loads(path.read_text())["provenance"]["seconds"] for path in artifacts]
    found = Rates(store).duration(large, large.cost, None)
    assert max(made) / 200_000 * size > 10  # in proportion to their bytes; a worker that is warm is quick
    assert 0.5 < found.seconds < max(made) + 2
    assert found.source == "usual"


def test_a_run_makes_every_artifact_and_says_where_the_report_is(ran):
    assert (ran.run / "report" / "report.html").is_file()
    results = json.loads((ran.run / "report" / "results.json").read_text())
    assert "held_out" in json.dumps(results)
    assert not list(ran.store.rglob(".*.resume"))
    assert len(payloads(ran.store)) == ran.output.count(" done ")


def test_a_spec_with_a_search_is_two_graphs_and_starts_ray_once(ran):
    files = sorted(ran.store.glob("runs/*/status.json"), key=lambda file: file.stat().st_mtime)
    assert [json.loads(file.read_text())["state"] for file in files] == ["finished", "finished"]
    assert files[1].parent == ran.run
    assert ran.output.count(wording("end_to_end.artifacts_reused_starting_ray")) == 2
    assert len((ran.folder / "heads").read_text().splitlines()) == 1


def test_every_size_in_the_results_is_that_of_the_files(ran):
    graph = read_graph(ran.run / "graph.json")
    report = next(node.task for node in graph.nodes.values() if node.task.kind == "report")
    for cell in report.record.cells:
        model = graph.nodes[graph.nodes[report.inputs[cell.input]].task.inputs["model"]]
        tensors = read_checkpoint(ran.store / model.task.kind / model.id / "model").values()
        assert (cell.parameters, cell.bytes) == (total_parameters(tensors), total_bytes(tensors)), cell
    assert len({cell.series for cell in report.record.cells}) == 4


def test_a_run_records_the_lock_that_it_used_with_the_rows_that_it_read(ran):
    file = ran.run / "lock.json"
    lock = read_lock(file)
    assert lock.packages.items() >= installed().items()
    ((task, rows),) = lock.rows.items()
    meta = json.loads((ran.store / "tokenize" / task / "meta.json").read_text())
    assert rows.train.documents == meta["train"]["documents"]
    assert str(ran.folder) not in file.read_text()


def test_the_second_run_does_nothing_and_says_so(ran):
    def there():
        return {p: p.stat().st_mtime_ns for p in ran.store.rglob("*") if p.is_file() and "runs" not in p.parts}

    before = there()
    assert wording("end_to_end.nothing_do_all") in finish(start(ran.spec, ran.store, env=counting(ran.folder)))
    assert len((ran.folder / "heads").read_text().splitlines()) == 1
    assert (
        wording("end_to_end.nothing_do_all") in boomspec("run", ran.run, "--store", ran.store).stdout
    )  # it stands for its graph
    for address in (ran.run, ran.run.name):
        done = boomspec("report", address, "--store", ran.store, "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["report"] == str(ran.run / "report" / "report.html")
    assert before == there()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    spec = write(folder, LONG)
    finish(start(spec, folder / "store"))
    return spec, folder / "store"


@pytest.mark.chaos
@pytest.mark.parametrize("victim", ["driver", "worker"])
def test_killed_in_the_middle_of_distilling_it_ends_with_the_same_artifacts(undisturbed, tmp_path, victim):
    spec, store = undisturbed
    process = start(spec, tmp_path / "store")
    wait_for_distilling(tmp_path / "store", process)
    if victim == "driver":
        process.kill()
        process.communicate()
        assert not list((tmp_path / "store").glob("distill/*/artifact.json"))
        output = finish(start(spec, tmp_path / "store"))
    else:
        os.kill(worker_at("distill", process).pid, signal.SIGKILL)
        output = finish(process)
    assert "continues after step" in output
    assert payloads(tmp_path / "store") == payloads(store)


@pytest.mark.chaos
def test_ctrl_c_stops_cleanly_and_the_next_run_goes_on(undisturbed, tmp_path):
    spec, store = undisturbed
    process = start(spec, tmp_path / "store", start_new_session=True)
    wait_for_distilling(tmp_path / "store", process)
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "Traceback" not in output
    assert "continues after step" in finish(start(spec, tmp_path / "store"))
    assert payloads(tmp_path / "store") == payloads(store)
