"""`boomspec submit`, `status`, `logs` and `stop`: jobs on a Ray cluster, to which `runners.cli.submit` talks.

`submit` also prints a manifest for KubeRay or a script for Slurm, which start a cluster of their own.
"""

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

import boomspec
from boomspec.commands import options, shared
from boomspec.commands.kuberay import DEFAULT_SECRET, Pods, as_yaml, manifest
from boomspec.commands.slurm import script
from boomspec.compile.places import path_text
from boomspec.core.errors import BoomspecError, redact
from boomspec.core.graph import TaskGraph
from boomspec.core.machine import installed
from boomspec.core.sizes import shown_bytes
from boomspec.models import trust
from boomspec.plan.demand import local_paths, machine
from boomspec.plan.lock import Lock
from boomspec.plan.locking import LOCK, Hub, lock_of
from boomspec.plan.plan import is_plan, plan_tasks, sources_read
from boomspec.plan.run import GRAPH, check_runners
from boomspec.spec.experiments import load_spec
from boomspec.spec.spec_file import NO_PINS
from boomspec.store import Store, Where, is_url, open_store, usual_store
from boomspec.store.sources import source_name, upload_missing

_TAKERS = {  # which ways of submitting take an option; "": a cluster that runs, as do those that are not named here
    **dict.fromkeys(("address", "verify"), ("", "--kuberay", "--slurm")),
    **dict.fromkeys(("image", "store_claim", "secret"), ("--kuberay",)),
    "nodes": ("--kuberay", "--slurm"),
    "python": ("", "--slurm"),
    "env": ("", "--kuberay"),
}
_address_option = click.option(
    "--address",
    metavar="URL",
    envvar="RAY_API_SERVER_ADDRESS",
    default="http://127.0.0.1:8265",
    show_default="RAY_API_SERVER_ADDRESS, else http://127.0.0.1:8265",
    help="Job server of the cluster, which is its dashboard.",
)
_insecure_option = click.option(
    "--insecure", is_flag=True, help="Accept a cluster beyond loopback without a token, which anybody can use."
)
_cluster_json_option = click.option("--json", is_flag=True, help="Print JSON for programs.")
_cluster = options.options(_address_option, _insecure_option, _cluster_json_option)
_job = click.argument("job", metavar="ID")


@click.command("submit")
@options.spec_or_run_argument
@options.store_option
@_address_option
@click.option("--wait", is_flag=True, help="Follow it to its end, through every stage; exit as run does.")
@options.verify_option
@options.lock_options
@click.option("--python", metavar="PATH", help="A python on the cluster with boomspec's requirements. Default: python.")
@click.option("--pip", is_flag=True, help="Let Ray install the versions of packages that are installed here.")
@click.option("--env", multiple=True, metavar="NAME", help="Pass a variable; the cluster's users see it.")
@_insecure_option
@click.option("--kuberay", is_flag=True, help="Print a RayJob for KubeRay instead.")
@click.option("--slurm", is_flag=True, help="Print a script for sbatch instead.")
@click.option("--nodes", type=click.IntRange(min=1), help="For --kuberay and --slurm: machines. Default: 1.")
@click.option("--image", help="For --kuberay: a container image with boomspec[run].")
@click.option("--store-claim", metavar="NAME", help="For --kuberay: the PersistentVolumeClaim of a store in a folder.")
@click.option("--secret", metavar="NAME", help="For --kuberay: the Secret that --env reads. Default: boomspec-secrets.")
@_cluster_json_option
def submit(
    spec: Path, store: Where | None, kuberay: bool, slurm: bool, locked: bool, ignore_packages: bool, **given: Any
) -> None:
    """Run an experiment on a Ray cluster. The graph, its lock and boomspec's own code travel; nothing else does.

    The token is where Ray looks for it: RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token. The store is a URL,
    and takes the files that a spec reads, too; or a folder at the same place on every machine of the cluster, and then
    so are these files.

    \b
    Examples:
      boomspec submit specs/quickstart.yaml --address http://head:8265 --store /shared/store --wait
      boomspec submit SPEC --address http://head:8265 --store s3://bucket/boomspec --env AWS_PROFILE
      boomspec submit SPEC --kuberay --image IMAGE --store /store --store-claim NAME | kubectl apply --server-side -f -
      boomspec submit SPEC --slurm --store /shared/store --nodes 2 | sbatch
    """
    _check_options(given, store, kuberay=kuberay, slurm=slurm)
    stages = _stages(spec, store, locked=locked, ignore_packages=ignore_packages)
    options, nodes = ("--verify",) * given["verify"], given["nodes"] or 1
    if kuberay:
        check_runners()
        claim, secret = given["store_claim"] or "", given["secret"] or DEFAULT_SECRET
        # Ray in the image has the version of the one that is installed here.
        pods = Pods(given["image"], installed()["ray"], "", claim, nodes, secret, given["env"], options)
        print(_manifest(next(stages), pods), end="")
    elif slurm:
        print(_script(next(stages), given["python"] or sys.executable, nodes, options), end="")
    else:
        sent = {name: value for name, value in given.items() if "" in _TAKERS.get(name, ("",))}
        program = _job_program("submit", **sent, store_is_local=_is_local(spec, store))
        for stage in stages:
            with tempfile.TemporaryDirectory(prefix="boomspec-") as temporary:
                graph, lock = Path(temporary, GRAPH), Path(temporary, LOCK)
                stage.graph.write(graph)
                stage.lock.write(lock)
                code = shared.wait([*program, str(graph), "--store", stage.store.address, "--lock", str(lock)])
            if code:
                sys.exit(code)
            if stage.first and not given["wait"]:
                click.echo(f"{stage.first}; --wait does that by itself", err=True)
                break


@dataclass(frozen=True)
class _Stage:
    """One graph to run. first: what to say where the rest of the experiment waits for searches in it."""

    graph: TaskGraph
    store: Store
    lock: Lock
    first: str


def _stages(spec: Path, store: Where | None, *, locked: bool, ignore_packages: bool) -> Iterator[_Stage]:
    """The graphs, each compiled with what the last one found. Raises BoomspecError where that cannot be seen here."""
    if is_plan(spec):
        raise BoomspecError(f"{spec}: is a saved plan, which holds for this machine", hint="submit the spec")
    kept = shared.run_lock(spec, locked=locked, ignore_packages=ignore_packages)
    done: set[str] = set()
    while True:
        graph, place, _, pending = shared.runnable(spec, store, kept.pins if kept else NO_PINS)
        graph.check_known()
        graph = kept.hold(graph, place) if kept else graph
        waiting = shared.searches(graph, pending)
        if done & waiting:
            found = f"{', '.join(pending)}: has run, and what it found is not in {place.address}"
            raise BoomspecError(found, hint="the store must be readable here, too; else submit again from where it is")
        lock = kept.lock if kept else lock_of(graph, place, Hub(offline=True))
        options.warn(trust.warnings(graph))
        if place.is_remote:  # machines that share no folder get files from nowhere else
            for source, size in upload_missing(place, sources_read(graph, plan_tasks(graph, place))):
                click.echo(f"put into the store: {source_name(source)}, {shown_bytes(size)}", err=True)
        first = f"first {', '.join(pending)}; when that has ended, the same command submits the rest"
        yield _Stage(graph, place, lock, first if pending else "")
        if not pending:
            return
        done |= waiting


def _manifest(stage: _Stage, pods: Pods) -> str:
    pods = replace(pods, store=stage.store.address)
    _check_claim(pods.store, pods.claim)
    on_gpus = machine(stage.graph, nodes=pods.nodes, gpus=True)
    tasks = f"{stage.graph.name}, {len(stage.graph.nodes)} tasks"
    comments = [f"boomspec {boomspec.__version__}: {tasks}. The image must hold it."]
    comments += [f"{name} of the Secret {pods.secret} become variables of every container." for name in pods.variables]
    if on_gpus is not None and on_gpus.gpu_memory:
        comments.append(f"The tasks on one GPU are estimated to take {shown_bytes(on_gpus.gpu_memory)} of it.")
    if not stage.store.is_remote:
        comments += [f"Every pod must see {path}." for path in local_paths(stage.graph)]
    comments += [f"{stage.first}."] if stage.first else []
    return as_yaml(manifest(stage.graph, stage.lock, pods), comments)


def _script(stage: _Stage, python: str, nodes: int, options: tuple[str, ...]) -> str:
    """The script. The run's folder, with the graph (in the cache, of a URL), must be shared with the allocation."""
    store = stage.store
    store.check_writable()
    folder = store.run_folder(stage.graph.name, stage.graph.id)
    stage.graph.write(folder / GRAPH)
    used = folder / "submitted-lock.json"
    stage.lock.write(used)
    if stage.first:
        click.echo(stage.first, err=True)
    runner = [python, "-P", "-m", "runners", str(folder / GRAPH), "--store", store.address]
    runner += ["--lock", str(used), "--plain", *options]
    return script(stage.graph, runner, folder / "slurm-%j.log", nodes=nodes)


def _check_options(given: dict[str, Any], store: Where | None, *, kuberay: bool, slurm: bool) -> None:
    """Raise BoomspecError for options that do not go together, before anything is compiled."""
    if kuberay and slurm:
        raise BoomspecError("--kuberay and --slurm print two different things", hint="give one of them")
    name = "--kuberay" if kuberay else "--slurm" if slurm else ""
    for option in (option for option, value in given.items() if value):
        takers = _TAKERS.get(option, ("",))
        if name not in takers:
            where = " and ".join(taker or "a cluster that runs" for taker in takers)
            but = f", not for {name}" if name else ""
            raise BoomspecError(f"--{option.replace('_', '-')} is for {where}{but}")
    if kuberay and not given["image"]:
        raise BoomspecError("--kuberay needs --image", hint="the Dockerfile of boomspec's repository makes one")
    if kuberay and store is not None:  # else the spec says it
        _check_claim(open_store(store).address, given["store_claim"] or "")


def _check_claim(store: str, claim: str) -> None:
    """Raise BoomspecError unless pods reach the store: a folder by a volume, and a URL by itself."""
    if is_url(store) and claim:
        raise BoomspecError(f"--store-claim is for a store in a folder, not for {redact(store)}", hint="leave it out")
    if not (is_url(store) or claim):
        raise BoomspecError("--kuberay needs --store-claim", hint="or a store at a URL: --store s3://bucket/boomspec")


def _is_local(spec: Path, store: Where | None) -> bool:
    """Whether the store was named relative to a folder of this machine, or not at all."""
    named = store
    if store is None and spec.suffix != ".json":
        file = load_spec(spec)
        if file.spec.execution.store is not None:
            named = path_text(file, ("execution", "store"), file.spec.execution.store)
    named = usual_store() if named is None else named
    return not (is_url(named) or Path(named).is_absolute())


def _job_program(action: str, **options: Any) -> list[str]:
    """The command that does `action` on a cluster; the job or the graph is appended to it."""
    check_runners()
    return shared.module_command("runners.cli.submit", action, **options)


@click.command("status")
@click.argument("job", metavar="[ID]", required=False)
@_cluster
def status(job: str | None, **cluster: Any) -> None:
    """List the jobs that boomspec submitted to a cluster; with ID, or the start of one, show one job in full.

    \b
    Example:
      boomspec status quickstart-1a2b3c4d-1 --address http://head:8265
    """
    sys.exit(shared.wait([*_job_program("status", **cluster), *([job] if job else [])]))


@click.command("logs")
@_job
@click.option("--follow", "-f", is_flag=True, help="Print until the job has ended; exit with the code of the run.")
@_cluster
def logs(job: str, **cluster: Any) -> None:
    """Print the output of a job on a cluster. The logs of its tasks are in the folder of its run.

    \b
    Example:
      boomspec logs quickstart-1a2b3c4d-1 --follow
    """
    sys.exit(shared.wait([*_job_program("logs", **cluster), job]))


@click.command("stop")
@_job
@_cluster
def stop(job: str, **cluster: Any) -> None:
    """Stop a job on a cluster. Its tasks write checkpoints first; if it is submitted again, it continues from them.

    \b
    Example:
      boomspec stop quickstart-1a2b3c4d-1
    """
    sys.exit(shared.wait([*_job_program("stop", **cluster), job]))
