"""Describe the training text in a plan: files per entry, BOS handling, number of epochs."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from boomspec.core.errors import BoomspecError
from boomspec.core.format import shown_count
from boomspec.core.graph import Node, Source, TaskGraph
from boomspec.core.tasks import Tokenize
from boomspec.models.tokenizer import text_start
from boomspec.store import Store

Count = Annotated[int, Field(ge=0)]
_MOST_NAMES = 3


class PlanModel(BaseModel):
    """A part of what `boomspec plan --json` prints; a text below a field describes it in the JSON Schema."""

    model_config = ConfigDict(
        frozen=True, use_attribute_docstrings=True, json_schema_serialization_defaults_required=True
    )


class FileEntrySummary(PlanModel):
    """What one entry of data.files gives, each file once; null where it is not known before it is read."""

    entry: str
    held_out: bool = False
    files: Count | None = None
    documents: Count | None = None
    bytes: Count | None = None


class TextPlan(PlanModel):
    """The text that one tokenize task reads."""

    task: str
    """The id of the tokenize task."""
    given: tuple[FileEntrySummary, ...]
    begins: str
    """How documents begin, in a sentence."""
    bos: tuple[str, ...] | None
    """The tokens that a document begins with; null where only the loaded tokenizer knows."""
    tokens: Count | None
    """Training tokens: those that were found, else data.max_tokens."""
    on_bad_row: Literal["error", "skip"]
    skipped: dict[str, Annotated[int, Field(ge=1)]] | None = None
    """Rows without text that were left out, by what was wrong; null before the text is read."""
    passes: dict[str, float] = {}
    """How often a training goes through the text, where that is more than once."""


def text_plans(graph: TaskGraph, store: Store) -> list[TextPlan]:
    return [_text_plan(node, graph, store) for node in graph.nodes.values() if isinstance(node.task.record, Tokenize)]


def lines(plan: TextPlan) -> list[str]:
    """What people have to know of it, in sentences."""
    found = [f"Documents begin {plan.begins}."]
    by_times: dict[str, list[str]] = {}
    for name, times in plan.passes.items():
        by_times.setdefault(f"{times:.3g}", []).append(name)
    for shown, names in by_times.items():
        more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
        listed = ", ".join(names[:_MOST_NAMES]) + more
        found.append(f"Of {shown_count(plan.tokens or 0)} tokens, read {shown} times by: {listed}.")
    if plan.skipped:
        listed = ", ".join(f"{count:,} {kind}" for kind, count in plan.skipped.items())
        found.append(f"{sum(plan.skipped.values()):,} rows without text were skipped ({listed}).")
    elif plan.on_bad_row == "skip" and plan.skipped is None:
        found.append("Rows without text will be skipped and counted.")
    return found


def _text_plan(node: Node, graph: TaskGraph, store: Store) -> TextPlan:
    record, inputs = node.task.record, node.task.inputs
    assert isinstance(record, Tokenize)
    meta = _meta(store, node.id)
    given = [found for role in ("text", "held_out") if role in inputs for found in _given(graph.sources[inputs[role]])]
    tokens = meta["train"]["tokens"] if meta else record.max_tokens
    begins, bos = _beginning(record, graph.sources.get(inputs.get("tokenizer", "")))
    readers = [n for n in graph.nodes.values() if tokens and n.task.inputs.get("tokens") == node.id]
    passes = {reader.name: reader.task.record.text_tokens() / (tokens or 1) for reader in readers}
    return TextPlan(
        task=node.id,
        given=tuple(given),
        begins=begins,
        bos=bos,
        tokens=tokens,
        on_bad_row=record.on_bad_row or "error",
        skipped=meta.get("skipped", {} if record.on_bad_row == "skip" else None) if meta else None,
        # The last document is read whole: less is a matter of rounding.
        passes={name: times for name, times in passes.items() if times > 1.005},
    )


def _given(source: Source) -> list[FileEntrySummary]:
    held_out = source.kind == "held_out_text"
    if (entries := source.location.get("entries")) is not None and entries:
        return [FileEntrySummary(**entry, held_out=held_out) for entry in entries]
    if "hub" in source.identity:
        return [FileEntrySummary(entry=source.identity["hub"])]
    files = source.identity.get("files", ())
    size = sum(file["bytes"] for file in files)
    documents = len(files) if source.identity.get("format") == "text" else None
    name = str(source.location.get("name", "files"))
    return [FileEntrySummary(entry=name, held_out=held_out, files=len(files), documents=documents, bytes=size)]


def _beginning(record: Tokenize, tokenizer: Source | None) -> tuple[str, tuple[str, ...] | None]:
    """How documents begin, as a phrase and as tokens."""
    if record.bos is False or tokenizer is None:
        return "after an end-of-text token, without a token of their own", ()
    if record.bos:
        return "with the beginning-of-sequence token of the teacher's tokenizer (data.bos: true)", None
    folder = tokenizer.location.get("folder")
    start = text_start(Path(folder)) if folder is not None else None
    if start is None:
        return "as the teacher's tokenizer begins a text", None
    if start:
        return f"with {' '.join(start)}, as the teacher's tokenizer begins a text", start
    return "after an end-of-text token: the teacher's tokenizer puts nothing in front of a text", ()


def _meta(store: Store, task: str) -> Any:
    """What was found when the text was read, if it was."""
    try:
        return json.loads(store.read("tokenize", task, "meta.json")) if store.has("tokenize", task) else None
    except (OSError, ValueError, BoomspecError):
        return None
