"""The task graph that the compiler writes and the runners execute; computes task ids.

    task id = sha256(canonical JSON {kind, version, params, inputs})

A `Task` is what is computed. A `Node` adds its name, where it runs and which tasks come first without being read: none
of that is in the id. A `Source` is what the graph reads and does not make, a model or a text: its id comes from what it
IS (digests, a pinned commit), its `location` is only where to find it.
"""

import json
import os
import re
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from boomspec.core.errors import BoomspecError, did_you_mean, redact
from boomspec.core.execution import Execution
from boomspec.core.files import write_atomically
from boomspec.core.identity import canonical_plain, canonical_texts, digest, text_digest
from boomspec.core.machine import install_line
from boomspec.core.sizes import Lineage, Member
from boomspec.core.tasks import Interpolate, Record
from boomspec.core.tasks.record import Cost as Cost

CODE = "code"  # of a source's identity: digests of the code that the spec trusts, by file name
SCHEMA_VERSION = 2
HELD_OUT_TEXT = "held_out_text"  # the kind of a source: files whose documents are all held out
OUTSIDE = "outside"  # in the location of lm-eval tasks: whether they lie outside of the folder of the spec
UNKNOWN = "unknown"  # the version of lm-eval in the identity of its tasks, compiled where it is not installed
NAME = "[A-Za-z0-9][A-Za-z0-9._-]{0,63}"  # of a graph: folders are called so
_REDACTED = re.compile(r"<(\w+)>")  # what `redact` leaves in place of a secret


@dataclass(frozen=True)
class Source:
    """Something outside the store. `identity` is hashed, `location` is not."""

    kind: str  # "model", "tokenizer", "text", "held_out_text", "hub_dataset", "lm_eval_tasks"
    identity: dict[str, Any]
    location: dict[str, Any] = field(compare=False)

    @cached_property
    def id(self) -> str:
        return digest({"source": self.kind, "identity": self.identity})


@dataclass(frozen=True)
class Task:
    """A record and the ids of its inputs, by role. `params`: the record's canonical JSON, where it is known already."""

    record: Record
    inputs: dict[str, str]
    params: str | None = field(default=None, compare=False, repr=False)

    @property
    def kind(self) -> str:
        return self.record.kind

    @cached_property
    def id(self) -> str:
        # The canonical JSON of `identity`, put together from its parts: a sweep has tens of thousands of tasks.
        params = params_json(self.record) if self.params is None else self.params
        inputs, version = canonical_texts(self.inputs), self.record.version
        return text_digest(f'{{"inputs":{inputs},"kind":"{self.kind}","params":{params},"version":{version}}}')

    def identity(self) -> dict[str, Any]:
        record = self.record
        return {"kind": record.kind, "version": record.version, "params": record.to_json(), "inputs": self.inputs}


def params_json(record: Record) -> str:
    return canonical_plain(record.to_json())


@dataclass(frozen=True)
class Node:
    task: Task
    name: str
    execution: Execution = field(default_factory=Execution)
    cost: Cost | None = field(default=None, compare=False)  # None: it is unknown
    after: tuple[str, ...] = ()  # ids of tasks that must have succeeded first, although it reads nothing of theirs
    generates: bool = False  # it has a model write text, or may do so: it shares no work with tasks of other sizes

    @property
    def id(self) -> str:
        return self.task.id

    def to_json(self) -> dict[str, Any]:
        cost = None if self.cost is None else asdict(self.cost)
        row = {**self.task.identity(), "name": self.name, "execution": self.execution.to_json(), "cost": cost}
        more = {"after": list(self.after), "generates": self.generates}
        return row | {name: value for name, value in more.items() if value}


@dataclass(frozen=True)
class Experiment:
    """One experiment of a graph. A plain spec is one, with no label; variants and sweeps make more."""

    label: str
    axes: dict[str, str]  # its coordinates: {"variant": "no-cosine", "seed": "1"}
    tasks: dict[str, str]  # their ids by their names in this experiment
    meaning: dict[str, Any]  # what its spec means (`boomspec.compile.resolved`), for people and for comparisons
    family: Lineage | None = None  # what any size is made of; None where layers are still to be searched for

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "family": None if self.family is None else self.family.to_json()}


@dataclass(frozen=True)
class TaskGraph:
    """Nodes in an order in which every task comes after its inputs. A task that experiments share is one node."""

    name: str
    nodes: dict[str, Node]
    sources: dict[str, Source]
    targets: tuple[str, ...]
    spec: str = ""  # the text that was compiled
    experiments: tuple[Experiment, ...] = ()
    tracking: dict[str, Any] = field(default_factory=dict)  # where a run's numbers go, as the spec says; no identity

    @cached_property
    def id(self) -> str:
        # A check decides no result, and its id depends on the version of a library.
        return digest(sorted(i for i, node in self.nodes.items() if node.task.record.decides_results))

    @property
    def family(self) -> Lineage | None:
        """The family of the only experiment; None where there are several, or its layers are still searched for."""
        return self.experiments[0].family if len(self.experiments) == 1 else None

    def task_of(self, member: Member) -> str | None:
        """Id of the task or source that is this model of its family; None for a size that the graph does not build."""
        if (family := self.family) is None:
            return None
        if member.is_teacher:
            return family.teacher
        if member.plan == family.trained.plan:
            return family.student
        wanted = member.plan, member.tied, family.teacher, family.student
        made = [(node, node.task.record) for node in self.nodes.values() if isinstance(node.task.record, Interpolate)]
        found = ((node.id, (r.plan, r.tied, *map(node.task.inputs.get, ("teacher", "student")))) for node, r in made)
        return next((task for task, its in found if its == wanted), None)

    @property
    def reads_hub(self) -> bool:
        """Whether a task reads something from the hub; stock lm-eval tasks load their documents from there."""
        return any("hub" in source.identity or "lm_eval" in source.identity for source in self.sources.values())

    @property
    def unknown(self) -> frozenset[str]:
        """The tasks that read lm-eval tasks of an unknown version: no artifact may be published under such an id."""
        sources = {i for i, source in self.sources.items() if source.identity.get("lm_eval") == UNKNOWN}
        return frozenset(i for i, node in self.nodes.items() if sources and sources & {*node.task.inputs.values()})

    def check_known(self) -> None:
        """Raise BoomspecError where the ids of tasks are not known, so that nothing can be run."""
        if names := [self.nodes[i].name for i in self.nodes if i in self.unknown]:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            message = (
                f"lm-eval is not installed where this was compiled: what '{names[0]}'{more} would measure is unknown"
            )
            raise BoomspecError(message, hint=f"{install_line('run')}, then compile the spec again")

    def only(self, label: str, *, named: object = None) -> Self:
        """One experiment with its own names of tasks; BoomspecError without it. `named`: how people call the graph."""
        by_label = {experiment.label: experiment for experiment in self.experiments}
        if (found := by_label.get(label)) is None:
            raise no_such_experiment(named or self.name, label, list(by_label))
        names = {task: name for name, task in found.tasks.items()}
        own = [node for i, node in self.nodes.items() if i in names]
        nodes = {n.id: replace(n, name=names[n.id], after=tuple(i for i in n.after if i in names)) for n in own}
        read = {source for node in nodes.values() for source in node.task.inputs.values()}
        sources = {i: source for i, source in self.sources.items() if i in read}
        targets = tuple(target for target in self.targets if target in nodes)
        return replace(self, nodes=nodes, sources=sources, targets=targets, experiments=(found,))

    def until(self, kind: str) -> Self:
        """The tasks of a kind and what they need. Raises BoomspecError where there are none."""
        kinds = dict.fromkeys(node.task.kind for node in self.nodes.values())
        if kind not in kinds:
            raise BoomspecError(f"no task is of the kind '{kind}'", hint=f"kinds of this spec: {', '.join(kinds)}")
        targets = tuple(i for i, node in self.nodes.items() if node.task.kind == kind)
        needed = set(targets)
        for task_id in reversed(self.nodes):
            needed.update(self.waits_for(task_id) if task_id in needed else ())
        nodes = {i: node for i, node in self.nodes.items() if i in needed}
        read = {source for node in nodes.values() for source in node.task.inputs.values()}
        sources = {i: source for i, source in self.sources.items() if i in read}
        experiments = tuple(
            replace(one, tasks={name: i for name, i in one.tasks.items() if i in nodes}) for one in self.experiments
        )
        return replace(self, nodes=nodes, sources=sources, targets=targets, experiments=experiments)

    def task_inputs(self, task_id: str) -> list[str]:
        """Ids of the tasks (not sources) that `task_id` needs, each once."""
        return self._inputs[task_id]

    def waits_for(self, task_id: str) -> list[str]:
        """Ids of the tasks that must have succeeded before `task_id` starts: its inputs, and those it comes after."""
        return self._waits[task_id]

    @cached_property
    def _inputs(self) -> dict[str, list[str]]:
        nodes = self.nodes
        return {
            task: list(dict.fromkeys(i for i in node.task.inputs.values() if i in nodes))
            for task, node in nodes.items()
        }

    @cached_property
    def _waits(self) -> dict[str, list[str]]:
        inputs = self._inputs
        return {i: list(dict.fromkeys([*inputs[i], *node.after])) for i, node in self.nodes.items()}

    def to_json(self) -> dict[str, Any]:
        return {
            "boomspec_graph": SCHEMA_VERSION,
            "name": self.name,
            "targets": list(self.targets),
            "sources": {source.id: asdict(source) for source in self.sources.values()},
            "tasks": {node.id: node.to_json() for node in self.nodes.values()},
            "spec": self.spec,
            "experiments": [experiment.to_json() for experiment in self.experiments],
            "tracking": self.tracking,
        }

    def write(self, path: Path) -> None:
        """Write the graph file, and its folder, atomically. Raises as `text` does."""
        text = self.text()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text)

    def text(self) -> str:
        """The graph file's text. Raises BoomspecError where it quotes a secret: it goes to stores and to clusters."""
        text = json.dumps(self.to_json(), indent=1, allow_nan=False) + "\n"
        check_secrets(text)
        return text


def check_secrets(text: str) -> None:
    """Raise BoomspecError where the JSON of a graph quotes a secret of this environment, or credentials in a URL."""
    written = {name: json.dumps(value)[1:-1] for name, value in os.environ.items()}  # escaped as in JSON
    if (clean := redact(text, environment=written)) != text:
        found = sorted(Counter(_REDACTED.findall(clean)) - Counter(_REDACTED.findall(text)))
        which = f": {', '.join(found)}" if found else ""
        message = f"the spec quotes a secret, the value of a variable like HF_TOKEN or credentials in a URL{which}"
        hint = "leave it out of the spec: tasks read such variables from the environment where they run"
        raise BoomspecError(message, hint=hint)


def no_such_experiment(named: object, label: str, labels: list[str]) -> BoomspecError:
    if labels == [""]:
        return BoomspecError(f"{named} is one experiment, and has no '{label}'", hint=f"leave out '#{label}'")
    return BoomspecError(f"{named} has no experiment '{label}'", hint=did_you_mean(label, labels) or listed(labels))


def listed(labels: list[str]) -> str:
    """The labels of experiments for a message; the first few of many."""
    more = f", ... ({len(labels)} in all)" if len(labels) > 8 else ""
    return f"its experiments: {', '.join(labels[:8])}{more}"
