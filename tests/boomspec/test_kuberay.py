"""`boomspec submit --kuberay` and `--slurm`: what they print, against a strict schema and the shell's own parser."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator, ValidationError

from boomspec.commands.kuberay import Pods, as_yaml, job_name, manifest
from boomspec.commands.slurm import script
from boomspec.compile.compiler import compile_experiments
from boomspec.core.errors import BoomspecError
from boomspec.core.execution import Execution, TrainingOptions
from boomspec.core.graph import Cost, Node, Task, TaskGraph
from boomspec.core.graph_file import graph_of_json
from boomspec.core.tasks import Evaluate, HeldOut
from boomspec.plan.demand import KEEPALIVE, machine
from boomspec.plan.lock import Lock
from boomspec.spec.experiments import load_spec
from tests.boomspec.conftest import Writer
from tests.messages import wording

SCHEMA = json.loads((Path(__file__).parents[1] / "golden" / "rayjob.schema.json").read_text())
LOCK = Lock(spec="x", models={}, datasets={}, texts={}, tasks={}, rows={}, packages={})
PODS = Pods(image="registry/boomspec:1", ray_version="2.60.0", store="/store", claim="shared", variables=("HF_TOKEN",))
GIB = 1 << 30
NOON = 1786881600.0  # of 2026-08-16, in UTC


def graph(*nodes: tuple[Execution, Cost | None], name: str = "Some.Thing_1") -> TaskGraph:
    """A graph of tasks that cost and take so much."""
    made = {}
    for number, (execution, cost) in enumerate(nodes):
        record = Evaluate(measure=HeldOut(sequence_length=16 + number), precision="fp32")
        node = Node(Task(record, {}), f"task {number}", execution, cost)
        made[node.id] = node
    return TaskGraph(name, made, {}, tuple(made))


def trained() -> TaskGraph:
    """Four workers with a GPU each, an evaluation with half a one, and something on CPUs with a custom resource."""
    return graph(
        (
            Execution(cpus=4, gpus=1, training=TrainingOptions(workers=4)),
            Cost(memory={"weights": 30 * GIB, "teacher": 10 * GIB}),
        ),
        (Execution(cpus=2, gpus=0.5), Cost(memory={"weights": 8 * GIB})),
        (Execution(cpus=3, memory=20 * GIB, resources={"fast_disk": 1}), Cost(memory={"buffers": 2 * GIB})),
    )


def job(documents: list[dict[str, Any]]) -> dict[str, Any]:
    (found,) = (document for document in documents if document["kind"] == "RayJob")
    return found


def test_the_manifest_is_a_rayjob_by_a_strict_schema_and_reads_back_from_its_yaml():
    Draft202012Validator.check_schema(SCHEMA)
    documents = manifest(trained(), LOCK, PODS)
    Draft202012Validator(SCHEMA).validate(job(documents))
    text = as_yaml(documents, ["a comment"])
    assert text.startswith("# a comment\n")
    assert list(yaml.safe_load_all(text)) == documents
    plain = manifest(graph((Execution(), None)), LOCK, Pods("i", "2.60.0", "/s", "c"))
    Draft202012Validator(SCHEMA).validate(job(plain))


def test_a_store_at_a_url_needs_no_volume_and_its_keys_are_references():
    keys = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    documents = manifest(trained(), LOCK, Pods("i", "2.60.0", "s3://bucket/boomspec", variables=keys))
    found = job(documents)
    Draft202012Validator(SCHEMA).validate(found)
    assert "--store s3://bucket/boomspec --lock" in found["spec"]["entrypoint"]
    cluster = found["spec"]["rayClusterSpec"]
    for group in cluster["workerGroupSpecs"]:
        spec = group["template"]["spec"]
        assert "volumes" not in spec
        assert "volumeMounts" not in spec["containers"][0]
        assert [variable["name"] for variable in spec["containers"][0]["env"]] == [*keys, *KEEPALIVE]
    head = cluster["headGroupSpec"]["template"]["spec"]
    assert [volume["name"] for volume in head["volumes"]] == ["job"]
    assert [mount["name"] for mount in head["containers"][0]["volumeMounts"]] == ["job"]
    assert "persistentVolumeClaim" not in json.dumps(documents)


@pytest.mark.parametrize("pods", [PODS, Pods("i", "2.60.0", "s3://b/x", variables=("AWS_PROFILE",))])
def test_the_schema_is_strict_everywhere(pods: Pods):
    found = job(manifest(trained(), LOCK, pods))

    def places(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        if isinstance(value, dict):
            inner = [found for key, item in value.items() for found in places(item, (*place, key))]
            return [place, *inner] if place[-1:] != ("labels",) else inner
        return (
            [found for i, item in enumerate(value) for found in places(item, (*place, i))]
            if isinstance(value, list)
            else []
        )

    everywhere = places(found)
    assert len(everywhere) > 40
    for place in everywhere:
        typo = copy.deepcopy(found)
        inside: Any = typo
        for key in place:
            inside = inside[key]
        inside["typo"] = "x"
        with pytest.raises(ValidationError):
            Draft202012Validator(SCHEMA).validate(typo)


def test_groups_are_sized_by_execution_and_the_estimates():
    groups = {
        g["groupName"]: g for g in job(manifest(trained(), LOCK, PODS))["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    }
    container = groups["gpu"]["template"]["spec"]["containers"][0]
    assert container["resources"]["limits"] == {"cpu": "16", "memory": "167Gi", "nvidia.com/gpu": "4"}
    assert groups["cpu"]["template"]["spec"]["containers"][0]["resources"]["requests"] == {"cpu": "3", "memory": "24Gi"}
    start = groups["cpu"]["rayStartParams"]
    assert json.loads(json.loads(start["resources"])) == {"fast_disk": 1}
    assert int(start["memory"]) >= 20 * GIB  # by default Ray keeps 30 % for objects, and the claim would never fit
    assert start["object-store-memory"] == str(GIB)
    two = manifest(trained(), LOCK, Pods("i", "2.60.0", "/s", "c", nodes=2))
    spread = job(two)["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    assert (spread["replicas"], spread["minReplicas"]) == (2, 2)
    limits = spread["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits == {"cpu": "8", "memory": "85Gi", "nvidia.com/gpu": "2"}
    on_gpus = machine(trained(), nodes=1, gpus=True)
    assert on_gpus is not None
    assert on_gpus.gpu_memory == 40 * GIB
    assert machine(graph((Execution(), None)), nodes=1, gpus=True) is None


def test_secrets_are_references_and_the_graph_travels_as_it_is():
    made = trained()
    documents = manifest(made, LOCK, PODS)
    (config,) = (document for document in documents if document["kind"] == "ConfigMap")
    assert graph_of_json(json.loads(config["data"]["graph.json"]), Path("x")) == made
    head = job(documents)["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    reference = {"secretKeyRef": {"name": "boomspec-secrets", "key": "HF_TOKEN"}}
    settings = [{"name": name, "value": value} for name, value in KEEPALIVE.items()]  # the same on all machines
    assert head["containers"][0]["env"] == [{"name": "HF_TOKEN", "valueFrom": reference}, *settings]
    assert {"name": "job", "configMap": {"name": config["metadata"]["name"]}} in head["volumes"]
    assert job(documents)["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}


def test_names_are_such_as_kubernetes_takes():
    for name in ("Some.Thing_1", "7b", "x" * 80, "a-" * 40):
        made = job_name(graph((Execution(), None), name=name), NOON)
        assert len(made) <= 47
        assert made[0].isalpha()
        assert made.replace("-", "").isalnum()
        assert made == made.lower()
        assert "--" not in made


def test_a_failed_run_costs_no_second_cluster_and_a_lost_head_gets_the_job_again():
    spec = job(manifest(trained(), LOCK, PODS))["spec"]
    assert spec["backoffLimit"] == 0
    assert (spec["submissionMode"], spec["submitterConfig"]) == ("K8sJobMode", {"backoffLimit": 6})


def test_a_manifest_that_is_made_again_is_another_job_and_otherwise_the_same():
    first, again, later = (manifest(trained(), LOCK, PODS, now=now) for now in (NOON, NOON, NOON + 1))
    assert first == again
    names = [document["metadata"]["name"] for document in (*first, *later)]
    assert names[0].endswith(f"-{trained().id[:8]}-260816-120000")
    assert names == [names[0]] * 2 + [names[0].removesuffix("0") + "1"] * 2
    text = as_yaml(later, [])
    assert text.replace(names[2], names[0]) == as_yaml(first, [])
    assert wording("kuberay.kubectl_get_rayjobs_configmaps", id=trained().id[:8]) in text


def test_a_graph_that_no_config_map_holds_is_refused():
    many = graph(*[(Execution(), None)] * 3000)
    with pytest.raises(BoomspecError, match="and a ConfigMap takes"):
        manifest(many, LOCK, PODS)


def test_the_script_for_slurm_is_one_that_bash_reads_and_asks_for_what_the_tasks_need(tmp_path: Path):
    runner = ["/opt/my env/bin/python", "-m", "runners", str(tmp_path / "it's" / "graph.json")]
    text = script(trained(), runner, tmp_path / "slurm-%j.log", nodes=2)
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    rows = [line.removeprefix("#SBATCH --") for line in text.splitlines() if line.startswith("#SBATCH")]
    assert {"nodes=2", "ntasks-per-node=1", "cpus-per-task=8", "gpus-per-node=2", "mem=85G", "requeue"} <= set(rows)
    assert "ray stop" not in text
    assert not re.search("@[A-Z]+@", text)


def submit(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return boomspec("submit", *arguments, folder=folder)


def boomspec(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "boomspec", *arguments]
    environment = {**os.environ, "HF_TOKEN": "hf_0123456789abcdef"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--kuberay --slurm", wording("kuberay.kuberay_slurm_print_two")),
        ("--kuberay --store-claim c", "--kuberay needs --image"),
        ("--kuberay --image i --store /store", "--kuberay needs --store-claim"),
        ("--kuberay --image i --store file:///store", "--kuberay needs --store-claim"),
        ("--kuberay --image i --store s3://b/x --store-claim c", wording("kuberay.store_claim_store_folder")),
        ("--kuberay --image i --store file:///store --store-claim c", "no-such-spec.yaml"),
        ("--slurm --image i", wording("kuberay.image_kuberay_not_slurm")),
        ("--slurm --wait", wording("kuberay.wait_cluster_runs_not")),
        ("--nodes 2", wording("kuberay.nodes_kuberay_slurm")),
    ],
)
def test_options_that_do_not_go_together_are_refused_before_anything_is_read(
    options: str, message: str, tmp_path: Path
) -> None:
    done = submit("no-such-spec.yaml", *options.split(), folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {message}")


def quoting(specs: Writer) -> Path:
    """A spec that quotes the value which `submit` has in HF_TOKEN."""
    tracking = "  tracking: {mlflow: {uri: 'http://mlflow.example/hf_0123456789abcdef'}}\n"
    return specs.text(specs.SPEC + tracking)


@pytest.mark.parametrize(
    "way",
    ["submit --kuberay --image i --store /store --store-claim c", "submit --slurm", "graph", "plan --output plan.json"],
)
def test_a_spec_that_quotes_a_secret_goes_nowhere(specs: Writer, folder: Path, way: str) -> None:
    command, *options = way.split()
    done = boomspec(command, str(quoting(specs)), *options, folder=folder)
    assert done.returncode == 2, done.stderr
    assert wording("kuberay.spec_quotes_secret") in done.stderr
    assert ": HF_TOKEN\n" in done.stderr
    written = [path for path in folder.rglob("*") if path.is_file() and path.name != "spec.yaml"]
    assert not [path for path in written if b"hf_0123456789abcdef" in path.read_bytes()]
    assert "hf_0123456789abcdef" not in done.stdout + done.stderr


def test_a_manifest_quotes_no_secret(specs: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    made = compile_experiments([load_spec(quoting(specs))]).graph
    assert manifest(made, LOCK, PODS)
    monkeypatch.setenv("HF_TOKEN", "hf_0123456789abcdef")
    with pytest.raises(BoomspecError, match=wording("kuberay.spec_quotes_secret")):
        manifest(made, LOCK, PODS)


def test_a_task_of_unknown_memory_gets_room():
    found = machine(graph((Execution(), None)), nodes=1, gpus=False)
    assert found is not None
    assert (found.cpus, found.gpus, found.gibibytes) == (1, 0, 12)


def test_the_image_of_the_dockerfile_has_what_it_copies_and_asks_for() -> None:
    root = Path(__file__).parents[2]
    lines = (root / "Dockerfile").read_text(encoding="utf-8").splitlines()
    copied = [name for line in lines if line.startswith("COPY ") for name in line.split()[1:-1]]
    assert {"boomspec", "runners", "pyproject.toml"} <= set(copied)
    assert all((root / name).exists() for name in copied)
    extras = next(line.removeprefix("ARG EXTRAS=") for line in lines if line.startswith("ARG EXTRAS=")).split(",")
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(extras) <= project["optional-dependencies"].keys()
    python = next(line.partition("python:")[2].partition("-")[0] for line in lines if line.startswith("FROM "))
    assert python in project["requires-python"]
