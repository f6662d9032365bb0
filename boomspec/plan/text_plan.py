"""What a plan says of the text: what each task reads, how much of it is learned, and what a blend is made of."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from boomspec.core.errors import BoomspecError
from boomspec.core.format import shown_count
from boomspec.core.graph import Node, Source, TaskGraph
from boomspec.core.tasks import Blend, Tokenize
from boomspec.models.tokenizer import text_start
from boomspec.plan.forecast import Count, PlanModel
from boomspec.plan.plan import RunPlan
from boomspec.plan.repetition import expected_tokens, passes, repetition_warnings
from boomspec.store import Store


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
    name: str = ""
    """The task's name, which says of which source of the data it is."""
    conversations: str | None = None
    """Where its rows hold conversations, by their fields; null for text."""
    loss_on: Literal["all", "responses"] = "all"
    """What is learned of conversations."""
    tokens: Count | None
    """Training tokens: those that were found, else data.max_tokens."""
    labelled: Count | None = None
    """Of these, those that a model learns to predict; null before the text is read."""
    unlabelled: Count | None = None
    """The others: prompts, and what a text begins with. They are inputs only."""
    on_bad_row: Literal["error", "skip"]
    skipped: dict[str, Annotated[int, Field(ge=1)]] | None = None
    """Rows without text that were left out, by what was wrong; null before the text is read."""
    passes: dict[str, float] = {}  # noqa: RUF012 (pydantic copies it)
    """How often a training goes through the text, where that is more than once; about, by `expected_tokens`."""
    expected_tokens: Count | None = None
    """About how many training tokens the bytes of the text will be; null where `tokens` are what a training reads."""


class BlendPartPlan(PlanModel):
    """What a blend takes of one text."""

    task: str
    name: str
    share: str
    """Of the tokens, or how many."""
    documents: Count | None
    tokens: Count | None
    labelled: Count | None


class BlendPlan(PlanModel):
    """Texts that are mixed into one; counts of the training text, null before that is done."""

    task: str
    name: str
    parts: tuple[BlendPartPlan, ...]
    tokens: Count | None
    labelled: Count | None
    unlabelled: Count | None
    passes: dict[str, float] = {}  # noqa: RUF012 (pydantic copies it)
    """How often a training goes through it, where that is more than once; about, by `expected_tokens`."""
    expected_tokens: Count | None = None
    """About how many training tokens it will have, by the bytes of the texts; null where `tokens` are known."""


def text_plans(graph: TaskGraph, store: Store) -> list[TextPlan]:
    tasks = ((node, node.task.record) for node in graph.nodes.values())
    return [_text_plan(record, node, graph, store) for node, record in tasks if isinstance(record, Tokenize)]


def _text_plan(record: Tokenize, node: Node, graph: TaskGraph, store: Store) -> TextPlan:
    inputs = node.task.inputs
    meta = _meta(store, node)
    given = [found for role in ("text", "held_out") if role in inputs for found in _given(graph.sources[inputs[role]])]
    tokens = meta["train"]["tokens"] if meta else record.max_tokens
    begins, bos = _beginning(record, graph.sources.get(inputs.get("tokenizer", "")))
    if record.chat is not None and not record.bos:
        begins, bos = "as the chat template begins a conversation", None
    expected = None if meta else expected_tokens(node, graph, {})
    if expected is not None and tokens is not None and tokens <= expected:
        expected = None  # data.max_tokens cuts the text off
    counted = tokens if expected is None else expected
    chat = record.chat
    fields = () if chat is None else (chat.messages, chat.tools, chat.prompt, chat.response)
    labelled = _labelled(meta) if meta else None
    return TextPlan(
        task=node.id,
        name=node.name,
        conversations=None if chat is None else ", ".join(filter(None, fields)),
        loss_on="all" if chat is None or chat.loss_on is None else chat.loss_on,
        labelled=labelled,
        unlabelled=None if labelled is None else meta["train"]["tokens"] - labelled,
        given=tuple(given),
        begins=begins,
        bos=bos,
        tokens=tokens,
        on_bad_row=record.on_bad_row or "error",
        skipped=meta.get("skipped", {} if record.on_bad_row == "skip" else None) if meta else None,
        passes=passes(graph, node.id, counted, estimated=expected is not None),
        expected_tokens=expected,
    )


def _given(source: Source) -> list[FileEntrySummary]:
    held_out = source.kind == "held_out_text"
    if entries := source.location.get("entries"):
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


def blend_plans(graph: TaskGraph, store: Store) -> list[BlendPlan]:
    tasks = ((node, node.task.record) for node in graph.nodes.values())
    return [_blend_plan(record, node, graph, store) for node, record in tasks if isinstance(record, Blend)]


def _blend_plan(record: Blend, node: Node, graph: TaskGraph, store: Store) -> BlendPlan:
    meta = _meta(store, node)
    parts, wanted = [], record.weights or record.budgets or ()
    for number, value in enumerate(wanted):
        source = graph.nodes[node.task.inputs[f"source_{number}"]]
        found = meta["train"]["sources"][number] if meta else {}
        labelled = found.get("labelled", found.get("tokens"))
        share = f"{value / sum(wanted):.1%}" if record.budgets is None else f"{shown_count(value)} tokens"
        counts = {name: found.get(name) for name in ("tokens", "documents")}
        parts.append(BlendPartPlan(task=source.id, name=source.name, share=share, **counts, labelled=labelled))
    tokens = meta["train"]["tokens"] if meta else None if record.budgets is None else sum(record.budgets)
    expected = expected_tokens(node, graph, _known(graph, store)) if tokens is None else None
    labelled = _labelled(meta) if meta else None
    return BlendPlan(
        task=node.id,
        name=node.name,
        parts=tuple(parts),
        tokens=tokens,
        labelled=labelled,
        unlabelled=None if labelled is None else meta["train"]["tokens"] - labelled,
        passes=passes(graph, node.id, expected if tokens is None else tokens, estimated=tokens is None),
        expected_tokens=expected,
    )


def _known(graph: TaskGraph, store: Store) -> dict[str, int]:
    """Training tokens of the texts that are tokenized, by their tasks."""
    metas = {node.id: _meta(store, node) for node in graph.nodes.values() if isinstance(node.task.record, Tokenize)}
    return {task: meta["train"]["tokens"] for task, meta in metas.items() if meta}


def passes_warnings(graph: TaskGraph, plan: RunPlan, store: Store) -> list[str]:
    """What goes through its text so often that more text, or a shorter training, is better."""
    texts: list[TextPlan | BlendPlan] = [*text_plans(graph, store), *blend_plans(graph, store)]
    counts = {text.task: (text.expected_tokens or text.tokens, text.expected_tokens is not None) for text in texts}
    known = {task: (tokens, estimated) for task, (tokens, estimated) in counts.items() if tokens}
    return repetition_warnings(known, graph, set(plan.ids("run")))


def _labelled(meta: Any) -> int:
    """How many training tokens are labels (`runners/data/tokens.py`): not the first, and not what a text begins with.

    Of conversations and blends it is counted when they are written; of text it follows from the number of documents.
    """
    train, eos = meta["train"], meta["eos"]
    if (counted := train.get("labelled", train.get("labels"))) is not None:
        return int(counted)
    own = [token for token in meta.get("prefix") or () if token != eos]
    hidden = len(own) * train["documents"] if own else 1
    return int(train["tokens"]) - hidden


def _meta(store: Store, node: Node) -> Any:
    kind = node.task.kind
    try:
        return json.loads(store.read(kind, node.id, "meta.json")) if store.has(kind, node.id) else None
    except (OSError, ValueError, BoomspecError):
        return None
