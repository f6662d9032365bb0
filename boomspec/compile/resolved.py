"""The resolved spec: one experiment with no default left out, layers and sizes as integers, revisions pinned.

    Spec --resolve--> ResolvedSpec --to_json--> what `boomspec show` prints, `diff` compares and graph.json keeps

The compiler makes every record from it, so that a default stands here or in the language and nowhere else. Two specs
that differ in notation only resolve to the same JSON, apart from `written`: the rules that became layers and sizes.
`FOLLOWING` and `BORROWED` name the values that follow from others, for whoever looks for the cause of a difference.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, TypeVar

from pydantic import BaseModel

from boomspec.compile.family import ResolvedFamily
from boomspec.compile.model_sources import other_role
from boomspec.compile.transfer_sources import BASE, DISTILLED
from boomspec.core.graph import Source
from boomspec.core.identity import digest
from boomspec.core.layers import ORDERS, TEACHER, Layer, blocks, family_of_sets, patchable, prefixes
from boomspec.core.losses import LOSSES, StateLoss
from boomspec.core.sizes import compact_plan
from boomspec.core.task_data import DATA, TASKS
from boomspec.spec.sections.baselines import IN_PHASES, TRAINED, BaselineItem
from boomspec.spec.sections.data import DataSpec, SourceSpec
from boomspec.spec.sections.execution import Resources
from boomspec.spec.sections.interpolate import OrderSearch
from boomspec.spec.sections.student import KeepChoice
from boomspec.spec.sections.training import DistillSpec, FaithfulSpec, OptimizerSpec, ScheduleSpec, block_losses
from boomspec.spec.spec_file import Spec

S = TypeVar("S", bound=BaseModel)
TEXT_FIELD = "text"
# Values that are worked out, and never written in a spec.
FOLLOWING = {
    ("student", "parameters"), ("student", "blocks"), ("teacher", "layers"), ("teacher", "parameters"), ("written",),
}  # fmt: skip
# Defaults that are the value of another field: the field, and the one that its default comes from.
BORROWED: dict[tuple[str, ...], tuple[str, ...]] = {
    ("teacher", "pretrain", "key_value_heads"): ("teacher", "pretrain", "attention_heads"),
    ("teacher", "pretrain", "positions"): ("data", "sequence_length"),
    **{("baselines", kind, "tokens"): ("distill", "tokens") for kind in TRAINED},
    **dict.fromkeys(
        (("distill", "losses", kind, "embedding") for kind, loss in LOSSES.items() if issubclass(loss, StateLoss)),
        ("student", "train_embedding"),
    ),
    **{
        ("distill", "blockwise", "polish", part, name): ("distill", part, name)
        for part, section in (("optimizer", OptimizerSpec), ("schedule", ScheduleSpec))
        for name in section.model_fields
    },
    **{("execution", "baseline", name): ("execution", "interpolate", name) for name in Resources.model_fields},
}


@dataclass(frozen=True)
class ResolvedSpec:
    """One experiment, complete.

    spec: its sections with every default (see `complete`); rules about layers and sizes stand there as written.
    family: what these rules became. None before a search has run, and where the teacher's layers are not known.
    sources: what it reads, by digests and pinned commits. text_names: of those that are text, by id.
    """

    spec: Spec
    family: ResolvedFamily | None = None
    sources: tuple[Source, ...] = ()
    text_names: Mapping[str, str] = field(default_factory=dict)

    @property
    def data(self) -> DataSpec:
        """The section `data`, which the language demands wherever text is read."""
        assert self.spec.data is not None
        return self.spec.data

    def to_json(self) -> dict[str, Any]:
        """Plain data without null and fields that nothing reads, in the language's order; what is read comes last."""
        spec = self.spec
        data: dict[str, Any] = spec.model_dump(mode="json", exclude_none=True)
        data["baselines"] = {kind: settings for item in data["baselines"] for kind, settings in item.items()}
        if spec.evaluate is not None:
            data["evaluate"]["tasks"] = tasks_by_name(data["evaluate"]["tasks"], spec)
            if not spec.evaluate.tasks:
                del data["evaluate"]["bootstrap_iters"]
        for role, section in (("teacher", spec.teacher), ("student", spec.student)):
            if section.model is None:
                del data[role]["trust_remote_code"]
                data[role].pop("rest", None)
        if spec.data is not None:
            formats = {self.text_names.get(s.id, ""): s.identity["format"] for s in self.sources if s.kind == "text"}
            for name, text in spec.data.texts.items():
                _say_text(data["data"] if not name else data["data"]["sources"][name], text, formats.get(name))
            if spec.data.sources is not None:  # what belongs to a source
                data["data"] = {key: value for key, value in data["data"].items() if key not in SourceSpec.model_fields}
        if (family := self.family) is not None:  # it replaces rules by integers
            keep, order, section = spec.student.keep, spec.interpolate.order, data["interpolate"]
            data["written"] = {"interpolate": section} | ({} if keep is None else {"keep": data["student"]["keep"]})
            student, teacher, interpolate = family.once("resolved", lambda: _layers(spec, family))
            if isinstance(keep, KeepChoice):
                student = {**student, "keep": {**data["student"]["keep"], "found": student["keep"]}}
            if isinstance(order, OrderSearch):
                interpolate = {**interpolate, "order": {**section["order"], "found": interpolate["order"]}}
            if spec.interpolate.seam is not None:
                interpolate = {**interpolate, "seam": section["seam"]}
            data |= {"student": data["student"] | student, "teacher": data["teacher"] | teacher}
            data["interpolate"] = interpolate
        data["sources"] = _read(spec, self.sources, self.text_names)
        return data


def resolve(spec: Spec, family: ResolvedFamily | None = None, sources: Iterable[Source] = ()) -> ResolvedSpec:
    """The resolved spec, as far as its family and its sources are known."""
    return ResolvedSpec(complete(spec), family, tuple(sources))


def complete(spec: Spec) -> Spec:
    """The spec with those defaults, too, that depend on other fields. A complete one stays as it is."""
    teacher, data, order = spec.teacher, spec.data, spec.interpolate.order
    changes: dict[str, Any] = {"execution": _filled(spec.execution, baseline=spec.execution.of("baseline"))}
    if teacher.pretrain is not None and data is not None:
        heads = teacher.pretrain.attention_heads
        pretrain = _filled(teacher.pretrain, key_value_heads=heads, positions=data.sequence_length)
        changes["teacher"] = teacher.model_copy(update={"pretrain": pretrain})
    if data is not None:
        texts = {name: _filled(text, **_text_defaults(text, data)) for name, text in data.texts.items()}
        changes["data"] = texts[""] if data.sources is None else data.model_copy(update={"sources": texts})
    if isinstance(order, OrderSearch) and order.search == "beam":
        changes["interpolate"] = spec.interpolate.model_copy(update={"order": _filled(order, width=4)})
    if (seam := spec.interpolate.seam) is not None and seam.fit != "scale":
        interpolate = changes.get("interpolate", spec.interpolate)
        changes["interpolate"] = interpolate.model_copy(update={"seam": _filled(seam, reach=1, ridge=0.01)})
    if (distill := spec.distill) is not None:
        trains, balanced = spec.student.train_embedding, distill.balance is not None
        losses, blockwise = distill.losses, distill.blockwise
        if blockwise is not None:
            losses = losses if "losses" in distill.model_fields_set else block_losses()
            losses = losses.each(lambda term: term.model_copy(update={"embedding": False, "final_norm": False}))
            if (polish := blockwise.polish) is None:
                trains = False
                changes["student"] = spec.student.model_copy(update={"train_embedding": False})
            else:
                polish = _filled(polish, optimizer=distill.optimizer, schedule=distill.schedule)
                polish_losses = polish.losses.each(lambda term: term.completed(train_embedding=trains, balanced=False))
                polish = polish.model_copy(update={"losses": polish_losses})
                blockwise = blockwise.model_copy(update={"polish": polish})
        losses = losses.each(lambda term: term.completed(train_embedding=trains, balanced=balanced))
        phases = distill.phases
        if phases is not None:
            own_losses = [
                phase.losses and phase.losses.each(lambda t: t.completed(train_embedding=trains, balanced=balanced))
                for phase in phases
            ]
            completed = zip(phases, own_losses, strict=True)
            phases = tuple(phase.model_copy(update={"losses": losses}) for phase, losses in completed)
        outputs = distill.teacher_outputs
        if outputs is not None and outputs.samples is not None:
            outputs = _filled(outputs, temperature=1.0)
        own = {"losses": losses, "teacher_outputs": outputs, "blockwise": blockwise, "phases": phases}
        changes["distill"] = _filled(distill.model_copy(update=own), faithful=FaithfulSpec())
        changes["baselines"] = tuple(_completed(item, spec.seed, distill) for item in spec.baselines)
    return spec.model_copy(update=changes)


def _text_defaults(text: SourceSpec, data: DataSpec) -> dict[str, Any]:
    return {
        "text_field": TEXT_FIELD,
        "split": "train" if text.dataset is not None else None,
        "held_out": data.held_out,
        "loss_on": "all" if text.is_chat else None,
    }


def _completed(item: BaselineItem, seed: int, distill: DistillSpec) -> BaselineItem:
    """A baseline with the seed and the tokens of its training; one in phases has those of the phases."""
    found: dict[str, Any] = {kind: control for kind in TRAINED if (control := getattr(item, kind)) is not None}
    if (run := item.contiguous_drop) is not None and not run.distilled:
        found = {}
    if item.cross_patching is not None:
        found["cross_patching"] = _filled(item.cross_patching, seed=(seed + 1) % 2**32)
    for kind, control in found.items():
        if distill.phases is None or kind not in IN_PHASES:
            found[kind] = _filled(control, tokens=distill.all_tokens)
    return item.model_copy(update=found)


def _filled(section: S, **defaults: Any) -> S:
    """The section with these values where it has None."""
    missing = {name: value for name, value in defaults.items() if getattr(section, name) is None}
    return section.model_copy(update=missing)


def tasks_by_name(items: list[dict[str, Any]], spec: Spec) -> dict[str, Any]:
    """The lm-eval tasks by their names in the report; the task itself is given where its name is another one."""
    assert spec.evaluate is not None
    return {
        name: {key: value for key, value in item.items() if key != "name" and (key != "task" or value != name)}
        for name, item in zip(spec.evaluate.names, items, strict=True)
    }


def unresolved(data: dict[str, Any]) -> dict[str, Any]:
    """The JSON with the rules that were written in the place of layers and sizes: it needs no teacher's facts."""
    plain = {key: value for key, value in data.items() if key != "written"}
    if (written := data.get("written")) is not None:
        plain["student"] = {**data["student"], "keep": written.get("keep")}
        plain["interpolate"] = written["interpolate"]
    return plain


def _layers(spec: Spec, family: ResolvedFamily) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    facts, kept, order = family.facts, family.kept, spec.interpolate.order
    student = {
        "keep": list(kept),
        "parameters": family.student.parameters,
        "blocks": [[block.start, block.stop - 1] for block in blocks(kept, facts.count)],
    }
    sizes = {
        family.label(member): {"plan": compact_plan(member.plan), "parameters": member.parameters}
        | ({"tied": member.tied} if facts.tied else {})
        for member in family.members
    }
    # The block that each step patches; the blocks of every size where one size's are not among the next one's.
    multiple = patchable(kept, facts.count)
    plans = [member.plan for member in family.every]
    sets = [{i for i in multiple if Layer(TEACHER, kept[i]) in layers} for layers in map(set, plans)]
    if all(before <= after for before, after in pairwise(sets)):
        steps: list[Any] = [i for before, after in pairwise(sets) for i in sorted(after - before)]
    else:
        steps = [sorted(patched) for patched in sets]
    # Where the published rule gives the same plans, the student owns the blocks of one layer, too.
    singletons = spec.interpolate.singletons
    if isinstance(order, str) and plans == family_of_sets(kept, facts.count, prefixes(ORDERS[order](multiple))):
        singletons = "student"
    teacher = {"layers": facts.count, "parameters": family.members[-1].parameters}
    return student, teacher, {"order": steps, "singletons": singletons, "sizes": sizes}


def _say_text(shown: dict[str, Any], text: SourceSpec, found: str | None) -> None:
    """Say in the JSON of a source which format its files were `found` to have, and leave out what nothing reads."""
    format = found or text.format
    if text.files is not None and format is not None:
        shown["format"] = format
    if text.is_chat or (text.dataset is None and format in (None, "text") and text.text_field == TEXT_FIELD):
        del shown["text_field"]
    if text.held_out is not None and text.held_out.files is not None:
        del shown["held_out"]["offset"]


def _read(spec: Spec, sources: Iterable[Source], text_names: Mapping[str, str]) -> dict[str, Any]:
    """What the spec reads, by what it is for, as it fits a page."""
    others = spec.distill.teachers.others if spec.distill is not None and spec.distill.teachers is not None else ()
    also = [other_role(number) for number, other in enumerate(others) if other.model is not None]
    last = ["student"] if spec.student.transfer is None else [BASE, DISTILLED]
    models = iter(["teacher", *also, *last] if spec.teacher.model is not None else last)
    read: dict[str, Any] = {}
    for source in sources:
        short = {key: value for key, value in source.identity.items() if value is not None}
        if isinstance(files := short.get("files"), list):  # a long list becomes a count and the id, which covers it
            short |= {"files": f"{len(files)} files", "id": source.id[:12]}
        if source.kind == "model":
            read[next(models)] = short
        elif source.kind in ("text", "hub_dataset"):
            name = text_names.get(source.id, "")
            read["data"] = {**read.get("data", {}), name: short} if name else short
        else:  # a spec may read lm-eval tasks of its own and stock ones
            known = read.setdefault(source.kind, {})
            tasks, data = short.pop(TASKS, ()), short.pop(DATA, None)
            if data is not None:  # outside of the tasks' folder: one digest, by the tasks that name it
                short[DATA] = {**known.get(DATA, {}), ", ".join(tasks): digest(data)[:12]}
            known |= short
    return read
