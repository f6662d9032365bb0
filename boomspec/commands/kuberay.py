"""A compiled graph as a RayJob of KubeRay: the manifest that `boomspec submit --kuberay` prints.

    graph + Pods --manifest--> [RayJob, ConfigMap with the graph and its lock]

KubeRay starts a cluster for the job, with a token of its own, and takes it away afterwards. It cannot upload code, so
the image holds boomspec, in the version that made the manifest. Secrets are references; no value is ever read here.
A RayJob runs once: each manifest has the time in its name, and so runs whatever became of the ones before it.
Fields: KubeRay 1.5.1 and later (`authOptions`), ray.io/v1.
"""

import json
import re
import shlex
import time
from dataclasses import dataclass
from typing import Any

import yaml

from boomspec.core.errors import BoomspecError
from boomspec.core.graph import TaskGraph
from boomspec.core.sizes import shown_bytes
from boomspec.plan.demand import KEEPALIVE, OBJECT_STORE, MachineRequirement, machine
from boomspec.plan.lock import Lock

DEFAULT_SECRET = "boomspec-secrets"
_LARGEST_MAP = 900 << 10  # a ConfigMap takes 1 MiB
_LONGEST_NAME = 47  # of a RayJob: services and pods are named after it
_GRAPH_FOLDER = "/boomspec-job"
_HEAD_CPUS, _HEAD_MEMORY = 2, "8Gi"
_KEEP_SECONDS = 600  # the finished job, for reading its logs
# KubeRay cannot tell failures apart: a whole cluster more for each would be wasted on those that come again.
_FURTHER_CLUSTERS = 0
# When the head's pod is lost the cluster gets another one, and the submitter's pod, which fails with it, is what gives
# it the job again, under the same id; a job that is there, also one that has failed, is not submitted twice. Kubernetes
# waits 10, 20, 40, ... seconds between attempts: ten minutes for a new head. (Read in KubeRay 1.5.1 and 1.7.)
_SUBMITTER_ATTEMPTS = 6
_COMMENTS = (
    "A run that fails is not repeated: it would fail again, on a new cluster. When the head's pod is lost KubeRay",
    "makes another one and submits the job again, and the run goes on from what is in the store.",
    "A RayJob that has ended does not run again, even if this text is applied again. To go on after a failure print",
    "the manifest again: that is a job with a name of its own. All of them: kubectl get rayjobs,configmaps -l {label}",
)


@dataclass(frozen=True)
class Pods:
    """How the job runs: `store` is a URL, or a path in the pods where the volume of the claim `claim` is mounted."""

    image: str
    ray_version: str
    store: str
    claim: str = ""  # none where the store is at a URL
    nodes: int = 1
    secret: str = DEFAULT_SECRET
    variables: tuple[str, ...] = ()  # each a key of that secret
    options: tuple[str, ...] = ()  # of the runners


def manifest(graph: TaskGraph, lock: Lock, pods: Pods, *, now: float | None = None) -> list[dict[str, Any]]:
    """The documents to apply. Raises BoomspecError where the graph is too large for that, or quotes a secret."""
    name = job_name(graph, time.time() if now is None else now)
    files = {"graph.json": graph.text(), "lock.json": lock.text()}
    if (size := sum(len(text.encode()) for text in files.values())) > _LARGEST_MAP:
        message = f"the graph has {shown_bytes(size)}, and a ConfigMap takes {shown_bytes(_LARGEST_MAP)}"
        raise BoomspecError(message, hint="name one experiment, SPEC#LABEL, or submit to a running cluster: --address")
    about = {"name": name, "labels": {"app.kubernetes.io/name": "boomspec", "boomspec/graph": graph.id[:8]}}
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": about, "data": files}
    runner = ["python", "-P", "-m", "runners", f"{_GRAPH_FOLDER}/graph.json", "--store", pods.store]
    runner += ["--lock", f"{_GRAPH_FOLDER}/lock.json", "--address", "auto", "--plain", *pods.options]
    sizes = {name: machine(graph, nodes=pods.nodes, gpus=name == "gpu") for name in ("gpu", "cpu")}
    there = [(name, size) for name, size in sizes.items() if size is not None]
    groups = [_group(name, size, 1 if i else pods.nodes, pods) for i, (name, size) in enumerate(there)]
    # The head runs the driver, and no task: a task that takes all memory must not take the cluster with it.
    head = _pod("ray-head", pods, {"cpu": str(_HEAD_CPUS), "memory": _HEAD_MEMORY}, config_map=name)
    job = {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": about,
        "spec": {
            "entrypoint": shlex.join(runner),
            "submissionMode": "K8sJobMode",
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": _KEEP_SECONDS,
            "backoffLimit": _FURTHER_CLUSTERS,
            "submitterConfig": {"backoffLimit": _SUBMITTER_ATTEMPTS},
            "rayClusterSpec": {
                "rayVersion": pods.ray_version,
                "authOptions": {"mode": "token"},
                "headGroupSpec": {"rayStartParams": {"num-cpus": "0"}, "template": head},
                "workerGroupSpecs": groups,
            },
        },
    }
    return [job, config]


def as_yaml(documents: list[dict[str, Any]], comments: list[str]) -> str:
    """The documents as one YAML text, below comments: those that are given, and how often the job runs."""
    label = f"boomspec/graph={documents[0]['metadata']['labels']['boomspec/graph']}"
    head = "".join(f"# {line}\n" for line in (*comments, *(line.format(label=label) for line in _COMMENTS)))
    return head + yaml.dump_all(documents, Dumper=_Readable, sort_keys=False, width=120, allow_unicode=True)


class _Readable(yaml.SafeDumper):
    """Writes texts of several lines as such."""


_Readable.add_representer(
    str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, "|" if "\n" in text else None)
)


def job_name(graph: TaskGraph, now: float) -> str:
    """A name that Kubernetes takes, of the graph's name and id and of the time, in UTC."""
    plain = re.sub(r"[^a-z0-9]+", "-", graph.name.lower()).strip("-")
    plain = plain if plain[:1].isalpha() else f"run-{plain}"
    own = f"-{graph.id[:8]}-{time.strftime('%y%m%d-%H%M%S', time.gmtime(now))}"
    return plain[: _LONGEST_NAME - len(own)].rstrip("-") + own


def _group(name: str, size: MachineRequirement, replicas: int, pods: Pods) -> dict[str, Any]:
    resources = {"cpu": str(size.cpus), "memory": f"{size.gibibytes}Gi"}
    if size.gpus:
        resources["nvidia.com/gpu"] = str(size.gpus)
    start = {"memory": str(size.claimable), "object-store-memory": str(OBJECT_STORE)}
    if size.resources:
        start["resources"] = json.dumps(json.dumps(size.resources))  # a shell reads it
    counts = dict.fromkeys(("replicas", "minReplicas", "maxReplicas"), replicas)
    return {"groupName": name, **counts, "rayStartParams": start, "template": _pod("ray-worker", pods, resources)}


def _pod(container: str, pods: Pods, resources: dict[str, str], *, config_map: str = "") -> dict[str, Any]:
    """A pod of one container, with the store's volume unless the store is at a URL, and the files of a ConfigMap."""
    volumes: list[dict[str, Any]] = []
    mounts: list[dict[str, Any]] = []
    if pods.claim:
        volumes.append({"name": "store", "persistentVolumeClaim": {"claimName": pods.claim}})
        mounts.append({"name": "store", "mountPath": pods.store})
    if config_map:
        volumes.append({"name": "job", "configMap": {"name": config_map}})
        mounts.append({"name": "job", "mountPath": _GRAPH_FOLDER, "readOnly": True})
    keys = {variable: {"name": pods.secret, "key": variable} for variable in pods.variables}
    env: list[dict[str, Any]] = [{"name": name, "valueFrom": {"secretKeyRef": key}} for name, key in keys.items()]
    env += [{"name": name, "value": value} for name, value in KEEPALIVE.items()]
    limits = {"requests": dict(resources), "limits": dict(resources)}
    made = {"name": container, "image": pods.image, "env": env, "resources": limits}
    made |= {"volumeMounts": mounts} if mounts else {}
    return {"spec": {"containers": [made]} | ({"volumes": volumes} if volumes else {})}
