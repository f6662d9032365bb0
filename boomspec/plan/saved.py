"""Saved plans: `boomspec plan --output` writes one, and `boomspec run` executes exactly that, or refuses.

    plan --save--> file --read_plan--> SavedPlan --check--> the same steps hold, or BoomspecError says what differs

A saved plan holds the compiled graph, what happens to each task, and the store that both are about. Whatever changes
the steps (an artifact that came or went, a text that was edited) makes it stale. What does not (another spec, another
boomspec with the same task kinds) is not looked at. The file knows its own digest, so a slip of an editor is found;
it is no protection against someone who means harm.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from boomspec.core.errors import BoomspecError
from boomspec.core.files import read_json, write_atomically
from boomspec.core.graph import TaskGraph, check_secrets
from boomspec.core.graph_file import graph_of_json
from boomspec.core.machine import installed
from boomspec.plan.plan import RunPlan, Step, plan_tasks
from boomspec.store import open_store
from boomspec.store.sources import changed_files, missing_files

SAVED_PLAN_VERSION = 1
KEY = "boomspec_plan"
_NAMED = 5  # differences that are named
_AGAIN = "make it again: boomspec plan SPEC --output FILE"


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
    try:
        data = read_json(path)
    except (OSError, ValueError):
        return False
    return isinstance(data, dict) and KEY in data


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


def check(saved: SavedPlan, path: Path) -> None:
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
