"""A run on machines that share nothing but a store at a URL: the artifacts of a run in a folder, also when one is lost.

One cluster of a head and three machines, each with a home and a cache of its own, and none with the files that the spec
reads, tells one story: a machine that does not reach the store is named, then a run is made in whose middle the machine
that trains is lost.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from boomspec.core.graph import TaskGraph
from boomspec.store import RECORD, FolderStore
from tests.messages import wording
from tests.runners import small
from tests.runners.grid import Grid, Machine, grid, without
from tests.runners.s3 import S3, s3_server

pytestmark = pytest.mark.chaos

BUCKET = "shared"
STEPS = 300
TRAINING = {"tokens": 64 * STEPS, "batch_tokens": 64}
SPEC = {
    "teacher": {"pretrain": TRAINING},
    "evaluate": {"tasks": ["even"], "tasks_folder": "tasks"},
    "execution": {"pretrain": {"checkpoint_seconds": 0.3}},
}
TASK = """
task: even
custom_dataset: !function data.load
output_type: multiple_choice
test_split: test
doc_to_text: "{{context}}"
doc_to_choice: choices
doc_to_target: label
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""
DATA = """
import datasets

def load(**_):
    rows = [{"context": f"line {i}", "choices": [" of", " in"], "label": i % 2} for i in range(6)]
    return {"test": datasets.Dataset.from_list(rows)}
"""


@dataclass(frozen=True)
class Story:
    """What was there when everything had ended."""

    grid: Grid
    s3: S3
    url: str
    graph: TaskGraph
    unreached: str  # what was said of a machine that does not reach the store
    untouched: list[str]  # objects that there were then
    output: str
    code: int
    lost: Machine

    @property
    def run_folder(self) -> Path:
        """That of the driver, which is on the head."""
        (store,) = (self.grid.folder / "head" / "stores").iterdir()
        return FolderStore(store).run_folder(self.graph.name, self.graph.id)

    def events(self) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in (self.run_folder / "events.jsonl").read_text().splitlines()]
        return [line for line in lines if line["run"] == lines[-1]["run"]]

    def read(self, name: str) -> bytes:
        content: bytes = self.s3.client().get_object(Bucket=BUCKET, Key=f"boomspec/{name}")["Body"].read()
        return content

    def node(self, name: str) -> str:
        return next(node.id for node in self.graph.nodes.values() if node.name == name)


def machine(made: Grid, name: str, hidden: Path, **variables: str) -> Machine:
    """One more machine, which has nothing in common with the others, nor what lies in the folder `hidden`."""
    home = made.folder / name
    home.mkdir()
    settings = {"HOME": str(home), "BOOMSPEC_CACHE": str(home / "cache"), **variables}
    return made.add(within=["env", *(f"{key}={value}" for key, value in settings.items()), *without(hidden)])


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    folder = Path(tempfile.mkdtemp(prefix="bs", dir="/tmp"))
    with s3_server() as s3:
        url = s3.make_bucket(BUCKET)
        own = tmp_path_factory.mktemp("spec")
        spec = small.write_spec(own, **SPEC)
        (own / "tasks").mkdir()
        (own / "tasks" / "even.yaml").write_text(TASK)
        (own / "tasks" / "data.py").write_text(DATA)
        graph = small.compiled(spec, FolderStore(folder / "nothing")).graph
        variables = s3.environment | {"BOOMSPEC_CACHE": str(folder / "head"), "BOOMSPEC_STORE_PATIENCE": "60"}
        try:
            with grid(folder, cpus=(0,), variables=variables, within=without(own)) as made:
                yield _told(made, s3, url, graph, spec)
        finally:
            shutil.rmtree(folder)


def _told(made: Grid, s3: S3, url: str, graph: TaskGraph, spec: Path) -> Story:
    first = machine(made, "first", spec.parent)
    astray = machine(made, "astray", spec.parent, AWS_ENDPOINT_URL="http://127.0.0.1:9")
    submit = ["submit", spec, "--address", made.address, "--store", url, "--wait"]
    refused = made.boomspec(*submit)
    assert refused.returncode == 2, refused.stdout + refused.stderr
    untouched = list(s3.objects(BUCKET))
    astray.leave()
    machines = [first, machine(made, "second", spec.parent), machine(made, "third", spec.parent)]
    with (made.folder / "driver.txt").open("w") as output:
        driver = subprocess.Popen(
            [sys.executable, "-m", "boomspec", *map(str, submit)],
            env=made.environment,
            cwd=made.folder,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            while driver.poll() is None and not any(name.endswith("/state.json") for name in s3.objects(BUCKET)):
                time.sleep(0.2)
            assert driver.poll() is None, (made.folder / "driver.txt").read_text()
            # Ray calls a process by its task.
            lost = next(one for one in machines if any("pretrain" in said for said in one.processes().values()))
            lost.lose()
            code = driver.wait(timeout=300)
        finally:
            driver.kill()
    said = (made.folder / "driver.txt").read_text()
    return Story(made, s3, url, graph, refused.stdout + refused.stderr, untouched, said, code, lost)


def test_a_machine_that_does_not_reach_the_store_is_named_before_anything_runs(story: Story) -> None:
    assert wording("remote_run.machines_cluster_cannot_work", url=story.url) in story.unreached
    assert "127.0.0.1:9" in story.unreached
    assert "start    " not in story.unreached
    own = ("/runs/", "/.in-use/", "/source/")
    assert not [name for name in story.untouched if not any(part in name for part in own)]


def test_what_the_spec_reads_goes_by_way_of_the_store_to_machines_that_do_not_have_it(story: Story) -> None:
    read = {source.id: source.kind for source in story.graph.sources.values()}
    assert sorted(read.values()) == ["lm_eval_tasks", "text"]
    there = {name.split("/")[2] for name in story.s3.objects(BUCKET, "boomspec/source/") if name.endswith(RECORD)}
    assert there == read.keys()
    assert re.search(wording("remote_run.put_into_store_text"), story.unreached)
    assert wording("remote_run.put_into_store") not in story.output, "it is there already"


def test_the_artifacts_are_those_of_a_run_in_a_folder(
    story: Story, connected: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert story.code == 0, story.output
    here = FolderStore(tmp_path / "here")
    assert small.run(story.graph, here) == 0
    records = {record.parent.name: json.loads(record.read_text()) for record in here.root.glob(f"*/*/{RECORD}")}
    made = [name for name in story.s3.objects(BUCKET) if name.endswith(RECORD) and "/source/" not in name]
    there = {name.split("/")[-2]: json.loads(story.read(name.removeprefix("boomspec/"))) for name in made}
    assert {i: record["files"] for i, record in there.items()} == {i: record["files"] for i, record in records.items()}


def test_a_training_goes_on_elsewhere_from_the_checkpoint_in_the_store_when_its_machine_is_lost(story: Story) -> None:
    events = story.events()
    retried = [event["name"] for event in events if event["event"] == "task_retried"]
    assert retried == ["pretrain teacher"]
    notes = [event["message"] for event in events if event["event"] == "note"]
    assert any(note.startswith(wording("remote_run.fetched_checkpoint_step")) for note in notes), notes
    assert any(note.startswith("continues after step ") for note in notes)
    assert not [name for name in story.s3.objects(BUCKET) if ".resume/" in name]


def test_progress_and_logs_of_all_machines_are_in_the_drivers_run_folder_and_at_the_url(story: Story) -> None:
    ended = {event["task"] for event in story.events() if event["event"] == "task_finished"}
    assert ended == set(story.graph.nodes)
    at = f"runs/{story.run_folder.name}"
    for name in ("events.jsonl", "status.json", "graph.json", "lock.json", "report/report.html"):
        assert story.read(f"{at}/{name}") == (story.run_folder / name).read_bytes()
    objects = story.s3.objects(BUCKET)
    for task in ended:
        first = (story.run_folder / "progress" / f"{task}.jsonl").read_text().splitlines()[0]
        assert "started" in json.loads(first)
        assert (story.run_folder / "logs" / f"{task}.log").is_file()
        assert f"boomspec/{at}/logs/{task}.log" in objects
    training = (story.run_folder / "progress" / f"{story.node('pretrain teacher')}.jsonl").read_text().splitlines()
    told = [json.loads(line) for line in training]
    assert sum("started" in line for line in told) == 2
    steps = [row["step"] for line in told for row in line.get("rows", ())]
    assert sorted(set(steps)) == list(range(STEPS))  # the whole curve, from two machines


def test_a_machine_fetches_a_model_once(story: Story) -> None:
    """Two are left. What one of them has made, many tasks of the other read."""
    models = [said for said in story.s3.wire.requests if said.startswith("GET") and "/model/model.safetensors" in said]
    assert any(f"/pretrain/{story.node('pretrain teacher')}/" in said for said in models)
    assert {said: story.s3.wire.requests[said] for said in models} == dict.fromkeys(models, 1)


def test_the_client_says_where_the_report_is(story: Story) -> None:
    assert f"report: {story.url}/runs/{story.run_folder.name}/report/report.html" in story.output
    assert f"boomspec report SPEC --store {story.url} writes it here" in story.output
