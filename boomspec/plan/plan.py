"""Plans a run: which tasks are reused, run, not needed or blocked, and why.

The walk goes backwards from the targets. An artifact that is present and whole is reused; its own inputs are then not
needed. An artifact of another id that has the same inputs byte for byte is reused, too. Nothing is changed here:
damaged artifacts are only reported.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from boomspec.core.errors import BoomspecError
from boomspec.core.graph import Node, Source, TaskGraph
from boomspec.store import Store
from boomspec.store.made_of import equal_artifacts
from boomspec.store.sources import is_local, missing_files, uploaded

Action = Literal["reuse", "run", "unneeded", "blocked"]
ABSENT = "not in the store"


@dataclass(frozen=True)
class Step:
    """What happens to one task, and why.

    fields: of the spec, those that force it, where an earlier run tells. same_as: the id of the artifact that is
    published under this task's id, too, where the two are made of the same. if_inputs_differ: it runs only if its
    inputs, which are made anew, come out otherwise than they were. unread: what is in the store cannot be read now.
    """

    action: Action
    reason: str
    fields: tuple[str, ...] = ()
    same_as: str = ""
    if_inputs_differ: bool = False
    unread: bool = False


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
    """Say for every task of `graph` what a run against `store` would do with it.

    `checksums` compares the contents of artifacts with their records, not only their sizes.
    """
    steps: dict[str, Step] = {}
    wanted = set(graph.targets)
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
            steps[task_id] = Step("run", absence)
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
        blocked = next((i for i in graph.waits_for(task_id) if steps[i].action == "blocked"), None)
        if blocked is not None:
            steps[task_id] = Step("blocked", f"its input {graph.nodes[blocked].name} is blocked")
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
