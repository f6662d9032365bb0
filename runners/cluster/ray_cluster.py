"""The Ray cluster of one run: an embedded one that is removed at its end, or one that exists already.

The embedded cluster takes connections from the network (Ray offers no other way), so it has a token of
its own. It never joins a cluster that it finds, shows no dashboard, reports no usage, and writes only
into a temporary folder that is removed at the end (or by the next run, when this one is killed).
"""

import os
import secrets
import socket
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import boomspec
import runners
from boomspec.core.errors import BoomspecError
from boomspec.core.files import locked_folder
from boomspec.core.graph import Node
from boomspec.core.sizes import shown_bytes
from runners.cluster import access
from runners.cluster.head_watch import RayHead

_OBJECT_STORE_BYTES = 100 << 20  # arguments and results are ids and paths
_LONGEST_TEMPORARY_FOLDER = 40  # Ray's sockets lie deep inside it, and their paths may have 107 bytes
_CONNECT_SECONDS = 10
_STARTS = 3
_LOOK_SECONDS = 5.0
_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # in the environment of a driver that Ray's job server started
_OOM_RETRIES = ("RAY_task_oom_retries", "3")  # without end by default
_EMBEDDED = {"RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0", "RAY_SCHEDULER_EVENTS": "0"}
_TOKEN = secrets.token_hex(32)  # one for the process: Ray's core reads it once
_SERVICES = ("start_api_server", "start_monitor", "start_log_monitor")  # methods of Ray's node
_STARTED: set[Path] = set()  # temporary folders of clusters that this process has started; one at most


@contextmanager
def cluster(
    address: str | None = None, *, cpus: int | None = None, gpus: int | None = None, insecure: bool = False
) -> Iterator[RayHead | None]:
    """Connect to the cluster at `address`, or start one here with `cpus` and `gpus` (default: all there are).

    Yields the head, which is watched. A process that is connected already stays so, unless an address is named: the
    cluster is its owner's, and None is yielded. Raises BoomspecError where nothing listens there and, unless
    `insecure`, where it asks for no token beyond loopback.
    """
    loaded = sys.modules.get("ray")  # not imported here: Ray reads its settings then
    if address is None and loaded is not None and loaded.is_initialized():
        yield None
        return
    if address is not None:
        address = _join(address, insecure=insecure)
    with _embedded(cpus, gpus) if address is None else nullcontext():
        import ray

        # Behind a proxy the head itself need not be reached from here.
        proxied = address is not None and address.startswith("ray://")
        head = None if proxied else RayHead(ray.get_runtime_context().gcs_address)
        with nullcontext() if head is None else head.watched():
            try:
                yield head
            finally:
                ray.shutdown()


def is_embedded() -> bool:
    """Whether this process has started the cluster that it is connected to: there is no other machine."""
    return bool(_STARTED)


@contextmanager
def _embedded(cpus: int | None, gpus: int | None) -> Iterator[None]:
    os.environ.update(dict([_OOM_RETRIES]) | _EMBEDDED | {"RAY_AUTH_TOKEN": _TOKEN})  # Ray reads them when imported
    _hush()
    temporary = tempfile.gettempdir()
    parent = Path(temporary if len(temporary) <= _LONGEST_TEMPORARY_FOLDER else "/tmp")
    with locked_folder(parent, "boomspec-ray-") as folder:
        _start(folder, cpus, gpus)
        _STARTED.add(folder)
        try:
            yield
        finally:
            _STARTED.discard(folder)


def _start(folder: Path, cpus: int | None, gpus: int | None) -> None:
    """Start a cluster in `folder`. On a busy machine Ray gives up after half a minute: once more, then.

    The head goes without the processes that serve a dashboard, an autoscaler and log readers. Nothing needs them, and
    Ray has no option against them: they are three of its eleven processes, 300 MB and nearly half of the time until it
    is up (measured with 2.60).
    """
    import ray
    from ray._private.node import Node

    def no_service(node: Any, **_: Any) -> None:
        node._webui_url = getattr(node, "_webui_url", None) or ""

    services = {name: vars(Node)[name] for name in _SERVICES if name in vars(Node)}
    for name in services:
        setattr(Node, name, no_service)
    try:
        for left in reversed(range(_STARTS)):
            try:
                ray.init(
                    address="local",
                    num_cpus=cpus,
                    num_gpus=gpus,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level="ERROR",
                    object_store_memory=_OBJECT_STORE_BYTES,
                    _temp_dir=str(folder),
                )
                return
            except Exception as error:  # Ray has no class of its own for it
                ray.shutdown()
                if not left or "timed out" not in str(error).lower():
                    raise
    finally:
        for name, method in services.items():
            setattr(Node, name, method)


def _hush() -> None:
    """Ray prints of lost workers and machines, with pages of their logs, on the standard output: the events say it."""
    import ray._private.worker as ray_worker

    ray_worker.print_to_stdstream = lambda data, ignore_prefix: None  # there is no option for it


def _join(address: str, *, insecure: bool) -> str:
    """Connect to a cluster. Returns its address, found where it was "auto"."""
    if address == "auto":
        address = access.address_here()
    _check_reachable(address)
    os.environ.setdefault(*_OOM_RETRIES)  # Ray reads both when imported
    access.settle_token(is_open=access.check_cluster(address, insecure=insecure))
    import ray

    _hush()
    # A job that was submitted brought the packages along, and Ray lets nobody name them twice.
    packages = [str(Path(module.__file__ or "").parent) for module in (boomspec, runners)]
    travelling = {} if _JOB in os.environ else {"py_modules": packages, "excludes": ["**/__pycache__"]}
    try:
        connected = ray.init(address=address, runtime_env=travelling, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, ValueError) as error:
        hint = "RAY_AUTH_TOKEN must be that of the cluster; without --address one is started on this machine"
        raise BoomspecError(f"no Ray cluster at {address}: {error}", hint=hint) from error
    if connected.dashboard_url:
        print(f"Ray's dashboard: http://{connected.dashboard_url}", flush=True)
    return address


def _check_reachable(address: str) -> None:
    """Raise BoomspecError where nothing listens: Ray would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return  # what asks it for its token says so
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        hint = "without --address a cluster is started on this machine"
        raise BoomspecError(f"no Ray cluster at {address}: {error.strerror or error}", hint=hint) from error


def machines() -> list[dict[str, float]]:
    """What each machine of the connected cluster has: {"CPU": 8.0, "GPU": 2.0, ...}."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def machine_name(node: dict[str, Any], *, with_id: bool = False) -> str:
    """A machine of `ray.nodes()` for people."""
    more = f", {node['NodeID'][:8]}" if with_id else ""
    return f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']}{more})"


def on_other_machines(excluded: Iterable[str]) -> dict[str, str]:
    """Ray's label selector of all machines but those of these ids."""
    return {"ray.io/node-id": f"!in({','.join(sorted(excluded))})"}


class LostMachines:
    """Machines that the connected cluster had and has no longer: those that left, failed, or do not answer."""

    def __init__(self) -> None:
        self._alive: dict[str, str] = {}  # names by id
        self._looked = -_LOOK_SECONDS

    def names(self) -> list[str]:
        """Those that were lost since the last look. Ray is asked every few seconds, and knows it after some."""
        import ray

        if time.monotonic() - self._looked < _LOOK_SECONDS:
            return []
        self._looked = time.monotonic()
        alive = {node["NodeID"]: machine_name(node) for node in ray.nodes() if node["Alive"]}
        lost = [name for node_id, name in self._alive.items() if node_id not in alive]
        self._alive = alive
        return lost


def check_feasible(nodes: Iterable[Node], machines: list[dict[str, float]]) -> None:
    """Raise BoomspecError for tasks that no machine can run: Ray would let them wait for ever."""
    impossible = [node for node in nodes if not fits(node, machines)]
    if not impossible:
        return
    wanted = []
    for node in impossible:
        amounts, workers = _amounts(node.execution.claims), node.execution.workers
        wanted.append(f"  {node.name} asks for {amounts if workers == 1 else f'{workers} workers with {amounts} each'}")
    named = {"CPU", "GPU", *(name for node in impossible for name in node.execution.claims)}
    there = [f"  {_amounts({name: machine.get(name, 0) for name in named})}" for machine in machines]
    raise BoomspecError(
        "\n".join(["the cluster has no room for:", *wanted, "the machines have:", *there]),
        hint="change `execution` in the spec, or name a larger cluster with --address",
    )


def fits(node: Node, machines: Iterable[Mapping[str, float]], *, fewest: bool = False) -> bool:
    """Whether idle machines have room for all workers of a task, or for the fewest that it needs."""
    execution = node.execution
    workers = execution.training.least_workers if fewest and execution.training else execution.workers
    return fitting(execution.claims, machines) >= workers


def fitting(claims: Mapping[str, float], machines: Iterable[Mapping[str, float]]) -> float:
    """How many workers with these claims idle machines have room for."""
    # Rounded: three workers of 0.1 CPUs fit into 0.3.
    return sum(
        min((round(machine.get(name, 0) / amount, 6) // 1 for name, amount in claims.items()), default=float("inf"))
        for machine in machines
    )


def _amounts(claims: dict[str, float]) -> str:
    """Amounts for people: "4 CPUs and 0 GPUs, 8 GiB of memory, 1 fast_disk"."""
    listed = [f"{claims.get('CPU', 0):g} CPUs and {claims.get('GPU', 0):g} GPUs"]
    if "memory" in claims:
        listed.append(f"{shown_bytes(int(claims['memory']))} of memory")
    custom = sorted(claims.keys() - {"CPU", "GPU", "memory"})
    return ", ".join([*listed, *(f"{claims[name]:g} {name}" for name in custom)])
