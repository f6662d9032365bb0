"""Write the model card of an exported size, from the graph and the store: what it is, how it was made, its results."""

import re
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, hf_hub_download

import boomspec
from boomspec.core.graph import Source, TaskGraph
from boomspec.core.sizes import Lineage, Member, compact_plan
from boomspec.core.tasks import Dequantize, Distill, Transfer
from boomspec.models.facts import read_config, read_facts, total_bytes, total_parameters
from boomspec.models.trust import foreign_code
from boomspec.store import Store
from runners.modeling.models import lineage_of
from runners.report.card_metadata import front_matter, measured_rows
from runners.report.format import count, size
from runners.report.page import TEMPLATES

_CARD = "README.md"
_FROM_BASE = ("license", "license_name", "license_link", "language")  # what a derived model must or may repeat

_TITLES = {Transfer.kind: "Weight-delta transfer"}


def model_card(graph: TaskGraph, store: Store, member: Member, *, folder: Path, name: str) -> str:
    """The text of README.md for the model that lies in `folder`; `name` is what it is loaded by."""
    lineage = lineage_of(graph)
    teacher, student = source_of(graph, lineage.teacher), source_of(graph, lineage.student)
    base = base_metadata(teacher) if teacher is not None else {}
    masked = "ForMaskedLM" in str(read_config(folder).get("architectures"))
    kind = "student" if member.plan == lineage.trained.plan else "teacher" if member.is_teacher else "interpolated"
    called = f"{graph.name}, {member.layers} layers"
    pipeline = "fill-mask" if masked else "text-generation"
    records = []
    for title, task in (("Distillation", lineage.student), ("The teacher's training", lineage.teacher)):
        if task in graph.nodes and not isinstance(record := graph.nodes[task].task.record, Dequantize):
            data = record.model_dump(mode="json", exclude_none=True)
            text = yaml.safe_dump(data, sort_keys=False, default_flow_style=None, allow_unicode=True, width=100)
            records.append((_TITLES.get(record.kind, title), fence(text)))
    return TEMPLATES.get_template("model_card.md.jinja").render(
        front_matter=front_matter(graph, store, {called: member}, base, library="transformers", pipeline=pipeline),
        title=called,
        kind=kind,
        auto_class="AutoModelForMaskedLM" if masked else "AutoModelForCausalLM",
        name=name,
        code=foreign_code(graph),
        facts=[
            *_facts(member, lineage, folder, base),
            *_other_teachers(graph, lineage.student),
            *_transferred(graph, lineage.student),
        ],
        untied=lineage.members[-1].tied and not member.tied,
        lineage=lineage,
        teacher=teacher,
        base_model=base.get("base_model"),
        student=student,
        records=records,
        results=_results(graph, store, member, kind),
        spec=fence(graph.spec),
        provenance=_provenance(graph, store, member),
        version=boomspec.__version__,
    )


def fence(text: str) -> str:
    """A block of YAML, whatever the text holds."""
    longest = max((len(run) for run in re.findall(r"`{3,}", text)), default=2)
    marks = "`" * (longest + 1)
    return f"{marks}yaml\n{text.rstrip()}\n{marks}"


def front_matter_of(card: str) -> dict[str, Any]:
    """The metadata that a model card opens with; empty where it has none that can be read."""
    if not card.lstrip().startswith("---"):
        return {}
    try:
        return dict(ModelCard(card, ignore_metadata_errors=True).data.to_dict())  # type: ignore[no-untyped-call]
    except (yaml.YAMLError, ValueError, TypeError):
        return {}


def source_of(graph: TaskGraph, model: str) -> Source | None:
    """Where a model comes from that exists, dequantised or as it is; None for one that the graph trains."""
    node = graph.nodes.get(model)
    if node is not None and isinstance(node.task.record, Dequantize):
        return graph.sources[node.task.inputs["model"]]
    return graph.sources.get(model)


def _other_teachers(graph: TaskGraph, student: str) -> list[tuple[str, str]]:
    """The teachers beside the own one, with their weights and licences."""
    node = graph.nodes.get(student)
    if node is None or not isinstance(record := node.task.record, Distill) or record.others is None:
        return []
    found = []
    for role, weight in zip(record.others.roles, record.others.weights, strict=True):
        source = source_of(graph, node.task.inputs[role])
        if source is None:
            found.append((f"{role} (weight {weight:g})", "pretrained by this experiment with another seed"))
        else:
            card = base_metadata(source)
            licence = card.get("license", "not found in its card")
            found.append((f"{role} (weight {weight:g})", f"`{card['base_model']}`, licence {licence}"))
    return found


def _transferred(graph: TaskGraph, student: str) -> list[tuple[str, str]]:
    """What a student is made of that no training has made, with the licences."""
    node, found = graph.nodes.get(student), []
    if node is None or not isinstance(node.task.record, Transfer):
        return []
    for role, title in (("distilled", "student that was transferred"), ("base", "base of that student")):
        source = source_of(graph, node.task.inputs[role])
        if source is None:
            found.append((title, "made by this experiment"))
        else:
            card = base_metadata(source)
            found.append((title, f"`{card['base_model']}`, licence {card.get('license', 'not found in its card')}"))
    return found


def base_metadata(source: Source) -> dict[str, Any]:
    """The name of the base model, and what its card says that ours repeats."""
    if "folder" in source.location:
        path = Path(source.location["folder"]) / _CARD
    else:
        try:
            path = Path(hf_hub_download(source.location["hub"], _CARD, revision=source.identity["revision"]))
        except Exception:  # offline, or it has none: a failed connection raises what the HTTP library of the day has
            path = Path()
    card = front_matter_of(path.read_text(encoding="utf-8", errors="replace")) if path.is_file() else {}
    name = source.identity.get("hub") or Path(source.location["folder"]).name
    return {"base_model": name, **{key: card[key] for key in _FROM_BASE if key in card}}


def _facts(member: Member, lineage: Lineage, folder: Path, base: dict[str, Any]) -> list[tuple[str, str]]:
    written = read_facts(folder)  # what is in the folder, not what was planned
    tensors = written.tensors(range(written.count), tied=written.tied)
    parameters, share = total_parameters(tensors), member.parameters / lineage.members[-1].parameters
    return [
        ("architecture", f"`{written.model_type}`, {written.count} layers"),
        ("parameters", f"{parameters:,} ({count(parameters)}), {share:.1%} of the teacher's"),
        ("weights", f"{size(total_bytes(tensors))}, stored as {written.dtype}"),
        ("embedding and head", "tied" if written.tied else "not tied"),
        ("layer plan", f"`{compact_plan(member.plan)}`"),
        ("kept layers of the teacher", f"`{', '.join(map(str, lineage.kept))}`"),
        *([("licence of the base model", str(base.get("license", "not found in its card")))] if base else []),
    ]


def _results(graph: TaskGraph, store: Store, member: Member, kind: str) -> dict[str, Any]:
    lineage, own = lineage_of(graph), graph.task_of(member)
    columns = {"student": lineage.student, "this model": own, "teacher": lineage.teacher}
    if kind != "interpolated":  # it is one of the other two
        columns = {f"{name} (this model)" if name == kind else name: columns[name] for name in ("student", "teacher")}
    found = {
        (model, row.measure, row.metric): row for model, row in measured_rows(graph, store) if model in columns.values()
    }
    lines = []
    for measure, metric in dict.fromkeys((row.measure, row.metric) for row in found.values()):
        rows = [found.get((model or "", measure, metric)) for model in columns.values()]
        better = [row.higher_is_better for row in rows if row is not None][-1]
        name = metric.replace("_", " ") + {True: " ↑", False: " ↓", None: ""}[better]
        lines.append({"measure": measure.replace("_", " "), "metric": name, "rows": rows})
    return {"labels": list(columns), "lines": lines, "evaluated": any(model == own for model, _, _ in found)}


def _provenance(graph: TaskGraph, store: Store, member: Member) -> list[tuple[str, str]]:
    lineage = lineage_of(graph)
    ids = {"teacher": lineage.teacher, "student": lineage.student, "this model": graph.task_of(member) or ""}
    tasks = (task for task in (ids["this model"], lineage.student, lineage.teacher) if task in graph.nodes)
    records = (store.record(graph.nodes[task].task.kind, task) for task in tasks)
    made: dict[str, Any] = next((record["provenance"] for record in records if record is not None), {})
    facts = {
        "graph": f"`{graph.id}`",
        **{label: f"`{task}`" for label, task in ids.items() if task},
        "commit": made.get("commit"),
        "Python": made.get("python"),
        "packages": ", ".join(f"{name} {version}" for name, version in made.get("packages", {}).items()),
        "finished": made.get("finished"),
    }
    return [(label, str(value)) for label, value in facts.items() if value]
