"""Plans a run: which tasks are reused, run, not needed or blocked, and why. Saves such a plan, and reads it again.

The walk goes backwards from the targets. An artifact that is present and whole is reused; its own inputs are then not
needed. An artifact of another id that has the same inputs byte for byte is reused, too. Nothing is changed here:
damaged artifacts are only reported.

    plan --save--> file --read_plan--> SavedPlan --check_saved--> the same steps hold, or it says what differs

`boomspec plan --output` saves a plan, and `boomspec run` executes exactly that, or refuses. Whatever changes the steps
(an artifact that came or went, a text that was edited) makes it stale. What does not (another spec, another boomspec
with the same task kinds) is not looked at. The file knows its own digest, so a slip of an editor is found; it is no
protection against someone who means harm.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from boomspec.core.errors import BoomspecError
from boomspec.core.files import read_json, write_atomically
from boomspec.core.graph import Node, Source, TaskGraph, check_secrets
from boomspec.core.graph_file import graph_of_json
from boomspec.core.machine import installed
from boomspec.store import Store, open_store
from boomspec.store.made_of import equal_artifacts
from boomspec.store.sources import changed_files, is_local, missing_files, uploaded

Action = Literal["reuse", "run", "unneeded", "blocked"]
ABSENT = "not in the store"
_UNKNOWN = "lm-eval is not installed here, so whether it is in the store is not known"
SAVED_PLAN_VERSION = 1
KEY = "boomspec_plan"
_NAMED = 5  # differences that are named
_AGAIN = "make it again: boomspec plan SPEC --output FILE"


@dataclass(frozen=True)
class Step:
    """What happens to one task, and why."""

    action: Action
    reason: str
    fields: tuple[str, ...] = ()  # of the spec, those that force it, where an earlier run tells
    same_as: str = ""  # id of an artifact that is made of the same, and is published under this task's id, too
    if_inputs_differ: bool = False  # it runs only if its inputs, which are made anew, differ from what they were
    unread: bool = False  # what is in the store cannot be read now


@dataclass(frozen=True)
class RunPlan:
    """The step of every task, by task id, in the order of the graph."""

    steps: dict[str, Step]

    def ids(self, action: Action) -> list[str]:
        return [task_id for task_id, step in self.steps.items() if step.action == action]

    @property
    def work(self) -> list[str]:
        """The tasks that a run has something to do for: those that run, and those that are published under their id."""
        return [task_id for task_id, step in self.steps.items() if step.action == "run" or step.same_as]


def plan_tasks(graph: TaskGraph, store: Store, *, checksums: bool = False) -> RunPlan:
    """The step of every task. `checksums`: compare contents of artifacts with their records, not only their sizes."""
    steps: dict[str, Step] = {}
    wanted, unknown = set(graph.targets), graph.unknown
    # All at once: looking for thousands of artifacts one by one takes seconds.
    unread: dict[tuple[str, str], BoomspecError] = {}
    everything = ((node.task.kind, node.id) for node in graph.nodes.values())
    there = store.survey(everything, checksums=checksums, unread=unread)
    lost: set[str] = set()  # what cannot be read now though something needs it, and all tasks after that
    for task_id, node in reversed(graph.nodes.items()):
        damage = there.get((node.task.kind, task_id), ABSENT)
        absence = f"damaged: {damage}" if damage not in (None, ABSENT) else damage
        if (error := unread.get((node.task.kind, task_id))) is not None:
            absence = error.message  # it may be whole: it is neither computed again nor discarded
            lost.update({task_id} & wanted)
        if absence is None:
            steps[task_id] = Step("reuse", "in the store")
        elif task_id not in wanted:
            steps[task_id] = Step("unneeded", f"{absence}, but nothing that runs needs it", unread=error is not None)
        elif error is not None:
            steps[task_id] = Step("blocked", absence, unread=True)
        else:
            steps[task_id] = Step("run", _UNKNOWN if absence == ABSENT and task_id in unknown else absence)
            wanted.update(graph.waits_for(task_id))
    lost.update(i for i in graph.nodes if steps[i].action == "run" and lost.intersection(graph.waits_for(i)))
    running = [i for i in graph.nodes if steps[i].action == "run" and i not in lost]
    for task_id, other in equal_artifacts(graph, store, running, checksums=checksums).items():
        steps[task_id] = Step("reuse", f"made of the same inputs, byte for byte: {other[:12]}", same_as=other)
    gone = {source.id: next(iter(missing_files(source)), None) for source in graph.sources.values()}
    elsewhere = uploaded(store, [source for source in graph.sources.values() if gone[source.id] is not None])
    gone |= dict.fromkeys(elsewhere)
    for task_id, node in graph.nodes.items():
        if steps[task_id].action == "run" and (obstacle := _obstacle(graph, node, steps, gone)) is not None:
            steps[task_id] = Step("blocked", obstacle)
    return RunPlan({task_id: steps[task_id] for task_id in graph.nodes})


def exclude_failed(graph: TaskGraph, plan: RunPlan, failed: Mapping[str, str]) -> RunPlan:
    """The plan in which tasks that have failed, for the reasons in `failed`, are not tried, nor what needs them."""
    steps = dict(plan.steps)
    for task_id in graph.nodes:
        if steps[task_id].action != "run":
            continue
        if blocked := [graph.nodes[i].name for i in graph.waits_for(task_id) if steps[i].action == "blocked"]:
            steps[task_id] = Step("blocked", f"its input {blocked[0]} is blocked")
        elif task_id in failed:
            steps[task_id] = Step("blocked", failed[task_id])
    return RunPlan(steps)


def sources_read(graph: TaskGraph, plan: RunPlan) -> list[Source]:
    """The sources in files that the tasks which run read."""
    read = {i: None for task_id in plan.ids("run") for i in graph.nodes[task_id].task.inputs.values()}
    return [graph.sources[i] for i in read if i in graph.sources and is_local(graph.sources[i])]


def _obstacle(graph: TaskGraph, node: Node, steps: Mapping[str, Step], gone: Mapping[str, Path | None]) -> str | None:
    for role, input_id in node.task.inputs.items():
        if input_id in gone:
            if (path := gone[input_id]) is not None:
                return f"its {role} is gone: {path} does not exist"
        elif steps[input_id].action == "blocked":
            return f"its input {graph.nodes[input_id].name} is blocked"
    first = next((i for i in node.after if steps[i].action == "blocked"), None)
    return None if first is None else f"it comes after {graph.nodes[first].name}, which is blocked"


@dataclass(frozen=True)
class SavedPlan:
    """A graph, its steps against one store, and the searches that the rest of the experiment waits for."""

    graph: TaskGraph
    plan: RunPlan
    store: str  # its address
    cpus: int | None = None  # of a local run
    checksums: bool = False  # whether contents of artifacts were compared with their records
    pending: tuple[str, ...] = ()

    def save(self, path: Path) -> None:
        """Raises BoomspecError where that would replace something else than a saved plan, or quotes a secret."""
        if path.exists() and not (path.is_file() and is_plan(path)):
            raise BoomspecError(f"{path}: is there already, and is no saved plan", hint="give another name to --output")
        steps = {task_id: asdict(step) for task_id, step in self.plan.steps.items()}
        named = {"store": self.store, "cpus": self.cpus, "checksums": self.checksums, "pending": self.pending}
        plan = {KEY: SAVED_PLAN_VERSION, **named, "steps": steps, "graph": self.graph.to_json()}
        data = json.loads(json.dumps(plan, allow_nan=False))  # as it will be read: tuples are lists
        text = json.dumps({**data, "sha256": _digest(data)}, indent=1, allow_nan=False) + "\n"
        check_secrets(text)
        write_atomically(path, text)


def is_plan(path: Path) -> bool:
    """Whether a JSON file is a saved plan, of any version. False for what cannot be read."""
    with suppress(OSError, ValueError):
        return isinstance(data := read_json(path), dict) and KEY in data
    return False


def read_plan(path: Path) -> SavedPlan:
    """Raises BoomspecError where the file cannot be read, is of another version, or was altered."""
    try:
        data = read_json(path)
    except (OSError, ValueError) as error:
        raise BoomspecError(f"{path}: cannot be read as a saved plan: {error}", hint=_AGAIN) from error
    found = data.get(KEY) if isinstance(data, dict) else None
    if found != SAVED_PLAN_VERSION:
        message = f"{path}: plan version {found!r}, but this boomspec reads version {SAVED_PLAN_VERSION}"
        raise BoomspecError(message, hint=_AGAIN)
    if data.pop("sha256", None) != _digest(data):
        raise BoomspecError(f"{path}: the plan was altered after it was made", hint=_AGAIN)
    graph = graph_of_json(data["graph"], path)
    steps = {i: Step(**{**step, "fields": tuple(step["fields"])}) for i, step in data["steps"].items()}
    return SavedPlan(graph, RunPlan(steps), data["store"], data["cpus"], data["checksums"], tuple(data["pending"]))


def check_saved(saved: SavedPlan, path: Path) -> None:
    """Raise BoomspecError, saying what differs, unless the plan still is what a run would do."""
    if differences := list(_differences(saved)):
        more = f"\n  and {len(differences) - _NAMED} more" if len(differences) > _NAMED else ""
        listed = "".join(f"\n  {difference}" for difference in differences[:_NAMED])
        raise BoomspecError(f"{path}: the plan no longer holds; nothing was run:{listed}{more}", hint=_AGAIN)


def _differences(saved: SavedPlan) -> Iterator[str]:
    """Sources of tasks that run whose contents are not those of the plan (the hub's are pinned commits), and steps."""
    read = {i for task_id in saved.plan.ids("run") for i in saved.graph.nodes[task_id].task.inputs.values()}
    for source in saved.graph.sources.values():
        if source.id not in read or missing_files(source):  # what is gone shows in the steps
            continue
        if (compiled := source.identity.get("lm_eval")) is not None:
            if (found := installed().get("lm_eval")) not in (None, compiled):
                yield f"lm_eval: {found} is installed, the plan was made with {compiled}"
            continue
        for path in changed_files(source):
            yield f"{path}: {'has changed' if path.exists() else 'is gone'} since the plan was made"
    now = plan_tasks(saved.graph, open_store(saved.store), checksums=saved.checksums)
    for task_id, step in now.steps.items():
        planned = saved.plan.steps[task_id]
        if (step.action, step.same_as) != (planned.action, planned.same_as):
            name = saved.graph.nodes[task_id].name
            yield f"{name}: planned was {planned.action} ({planned.reason}), now it is {step.action} ({step.reason})"


def _digest(data: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True, allow_nan=False).encode("utf-8")).hexdigest()
