"""`boomspec plan` and `lock`: what a run would do, why, and what it takes; the commits and files it is pinned to."""

import json
import math
import shlex
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import click

from boomspec.commands import options, shared
from boomspec.compile.compiler import compile_experiments
from boomspec.compile.lm_eval.asking import asking_warnings
from boomspec.core import machine
from boomspec.core.devices import DEVICES, others
from boomspec.core.errors import EXIT_RUN_FAILED, BoomspecError
from boomspec.core.files import check_locks
from boomspec.core.json_text import json_text
from boomspec.models import trust
from boomspec.plan.forecast import MachineSpec, forecast
from boomspec.plan.lock import Lock, completed, differences, drifts, lock_path
from boomspec.plan.locking import drift_lines, lock_now, required_lock
from boomspec.plan.model_checks import check_models
from boomspec.plan.plan import SavedPlan, plan_tasks
from boomspec.plan.plan_json import plan_json
from boomspec.plan.rates import save_calibration
from boomspec.plan.reasons import with_reasons
from boomspec.plan.run import check_runners, store_of
from boomspec.plan.text_plan import passes_warnings
from boomspec.spec.experiments import load_spec
from boomspec.store import Where

LOCK_SCHEMA_VERSION = 1
EXIT_SOMETHING_TO_DO = 3
_FILE = click.Path(path_type=Path, dir_okay=False)


def _finite(_context: click.Context, _option: click.Parameter, value: float | None) -> float | None:
    if value is not None and not math.isfinite(value):
        raise click.BadParameter(f"{value} is no number of GPUs")
    return value


@click.command("plan")
@options.spec_argument
@options.store_option
@click.option("--all", "every_task", is_flag=True, help="Print a row for each task, of however many experiments.")
@click.option("--output", metavar="FILE", type=_FILE, help="Save it; `boomspec run FILE` does just that, or refuses.")
@click.option(
    "--device",
    metavar="NAME",
    shell_complete=options.offered("devices"),
    help="Kind of GPU to estimate for. Default: execution.device of the spec.",
)
@click.option("--gpus", callback=_finite, type=click.FloatRange(min=0), metavar="N", help="Number of GPUs. Default: 1.")
@click.option("--calibrate", is_flag=True, help="Measure the speed of this machine first, in about ten seconds.")
@click.option("--verify", is_flag=True, help="Check the stored artifacts' checksums, not only their sizes.")
@click.option("--detailed-exitcode", is_flag=True, help="Exit with 0 where nothing is to be done, with 3 otherwise.")
@options.json_option
def plan(
    spec: Path, store: Where | None, output: Path | None, device: str | None, gpus: float | None, **flags: bool
) -> None:
    """Show which tasks a run would reuse and run, why, and what they take: operations, memory, disk, time.

    \b
    Examples:
      boomspec plan specs/quickstart.yaml
      boomspec plan specs/quickstart.yaml --json
    """
    if device is not None and device not in DEVICES:
        raise BoomspecError(f"no device '{device}' is known", hint=others(device))
    if flags["calibrate"]:
        calibrated = store_of(load_spec(spec), store)
        (calibrated.root / "cache").mkdir(parents=True, exist_ok=True)
        check_runners()  # which measure with the libraries that tasks use, in a process of their own
        printed = shared.runner_output("runners.cli.calibrate", "--folder", str(calibrated.root / "cache"))
        save_calibration(calibrated, json.loads(printed))
    compiled, place = shared.compiled_with(spec, store)
    place.check_is_no_file()
    check_locks(place.root)
    graph = compiled.graph
    asked = (line for file in compiled.files for line in asking_warnings(file))
    unchecked = [*check_models(compiled, place), *shared.unchecked(graph), *asked]
    plan = with_reasons(plan_tasks(graph, place, checksums=flags["verify"]), compiled, place)
    execution = compiled.files[0].spec.execution
    cpus, name = execution.cpus or machine.cpus(), device or execution.device
    assumed = MachineSpec(cpus, 1 if gpus is None else gpus, DEVICES[name] if name else None)
    found = forecast(graph, plan, place, assumed)
    whole = None
    if compiled.pending:
        # What is made up may be wrong where what will be found is not: a forecast is no reason to refuse a spec.
        with suppress(BoomspecError):
            guessed = compile_experiments(compiled.files, compiled.answers, guess=True).graph
            whole = forecast(guessed, plan_tasks(guessed, place), place, assumed)
    unread = [f"{graph.nodes[i].name}: {step.reason}" for i, step in plan.steps.items() if step.unread]
    found = replace(found, warnings=(*unread, *passes_warnings(graph, plan, place), *found.warnings))
    options.warn((*trust.warnings(graph), *unchecked))
    if output is not None:
        SavedPlan(graph, plan, place.address, execution.cpus, flags["verify"], compiled.pending).save(output)
    if flags["as_json"]:
        found = replace(found, warnings=(*trust.warnings(graph), *unchecked, *found.warnings))
        click.echo(json_text(plan_json(compiled, plan, found, place, whole), indent=2))
    else:
        from boomspec.plan.plan_text import print_plan  # rich is slow to load

        print_plan(compiled, plan, found, place, whole, every_task=flags["every_task"])
        if output is not None:
            click.echo(f"\nSaved; to execute exactly this: boomspec run {shlex.quote(str(output))}")
    if flags["detailed_exitcode"] and (plan.work or plan.ids("blocked")):
        sys.exit(EXIT_SOMETHING_TO_DO)


@click.command("lock")
@options.spec_argument
@options.store_option
@click.option("--check", is_flag=True, help="Write nothing; exit 1 where what was locked has drifted, and show it.")
@click.option("--ignore-packages", is_flag=True, help="With --check: accept any versions of the installed packages.")
@options.json_option
def lock(spec: Path, store: Where | None, check: bool, ignore_packages: bool, as_json: bool) -> None:
    """Pin everything that the names in a spec hide: commits, checksums, rows, lm-eval tasks, package versions.

    \b
    Examples:
      boomspec lock specs/quickstart.yaml
      boomspec lock specs/quickstart.yaml --check
    """
    if ignore_packages and not check:
        raise BoomspecError("--ignore-packages goes with --check", hint="a lock always names its packages")
    place = lock_path(spec)
    if check:
        required_lock(spec)  # before the work of finding out what the names stand for
    now, before, unreachable = lock_now(spec, store)
    if check and before is not None:
        changes = drifts(before, now, packages=not ignore_packages)
        answer: dict[str, object] = {"holds": not changes}
        done, lines = "drifted" if changes else "holds", drift_lines(changes)
    else:
        now = now if before is None else completed(now, before)
        changes = [] if before is None else differences(before, now)
        answer = {"written": before is None or bool(changes)}
        if answer["written"]:
            now.write(place)
        done = "written" if before is None else "changed" if changes else "unchanged"
        lines = [*_contents(now)] if before is None else drift_lines(changes)
    if as_json:
        plain = [{"field": list(d.path), "locked": d.before, "now": d.after} for d in changes]
        answer |= {"drifted" if check else "changed": plain, "hub": unreachable}
        click.echo(json_text({"schema": LOCK_SCHEMA_VERSION, "lock": str(place), **answer}, indent=2))
    else:
        remarks = []
        if not check and None in now.rows.values():
            remarks.append("The rows are known when a run has read them: call this again after it.")
        if not check and "torch" not in now.packages:
            remarks.append("What runs a graph is not installed here, so its packages are not locked: lock where it is.")
        click.echo("\n".join([f"{place}: {done}", *(f"  {line}" for line in lines), *remarks]))
        if unreachable is not None:
            click.echo(f"The hub gave no answer, so this is what the local cache and the lock know: {unreachable}")
    sys.exit(EXIT_RUN_FAILED if check and changes else 0)


def _contents(lock: Lock) -> Iterator[str]:
    for name, model in lock.models.items():
        commit = "" if model.revision is None else f"commit {model.revision[:12]}, "
        yield f"model {name}: {commit}{len(model.files)} files"
    for name, revision in lock.datasets.items():
        yield f"data set {name}: {revision[:12] if revision else 'commit unknown'}"
    for name, text in lock.texts.items():
        yield f"text {name}: {len(text.files)} files"
    for name, task in lock.tasks.items():
        yield f"lm-eval task {name}: {task.sha256[:12]} of {task.origin}"
    for streams in lock.rows.values():
        yield "rows: not read yet" if streams is None else f"rows: {streams.train.documents:,} to train on"
    yield f"{len(lock.packages)} packages"
