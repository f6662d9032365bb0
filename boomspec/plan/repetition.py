"""How often trainings go through their text: before it is tokenized by an estimate, and what is too often.

    tokens = bytes / 4                  of text, for the tokenizers of usual models: English has 4 to 5 bytes a token
    tokens = bytes 15 / (4 log2(V))     for a small vocabulary of V < 32768 entries that is trained here

Rows hold more than text, and compressed files hold more than their bytes say, so an estimate may be wrong by half.
"""

import math
from collections.abc import Mapping
from pathlib import Path

from boomspec.core.format import shown_count
from boomspec.core.graph import Node, Source, TaskGraph
from boomspec.core.tasks import Blend, Tokenize

PACKED = {".gz": 4.0, ".zst": 4.0, ".parquet": 2.0}  # what a byte of such a file becomes, about
TOO_OFTEN = 10  # passes: 4 are nearly as good as new text, far more are worth nothing (arXiv 2305.16264)
_ROUNDED = 1.005  # passes: the last document is read whole, so less more than one is a matter of rounding
_SURELY = 2.0  # passes by an estimate
_SHOWN = 3  # warnings


def bytes_a_token(vocabulary: int | None = None) -> float:
    """Bytes of text in a token, about."""
    return 4.0 if vocabulary is None else max(1.0, 4 * min(1.0, math.log2(max(2, vocabulary)) / 15))


def expected_tokens(node: Node, graph: TaskGraph, known: Mapping[str, int]) -> int | None:
    """About how many training tokens the text of a task will have; None where nothing says it."""
    record = node.task.record
    if isinstance(record, Tokenize):
        counts = [record.max_tokens, _of_files(record, graph.sources[node.task.inputs["text"]])]
        return min((count for count in counts if count is not None), default=None)
    if isinstance(record, Blend) and record.weights is not None:
        sources = [node.task.inputs[f"source_{number}"] for number in range(len(record.weights))]
        there = [known.get(i) or expected_tokens(graph.nodes[i], graph, known) for i in sources]
        parts = [count / part for count, part in zip(there, record.weights, strict=True) if count is not None]
        return int(min(parts) * sum(record.weights)) if len(parts) == len(there) else None
    return None


def _of_files(record: Tokenize, text: Source) -> int | None:
    files = text.identity.get("files")
    if not files:
        return None
    names = text.location.get("files") or [""] * len(files)
    size: float = sum(
        file["bytes"] * PACKED.get(Path(name).suffix, 1.0) for file, name in zip(files, names, strict=False)
    )
    wide = bytes_a_token(record.train_tokenizer.vocabulary if record.train_tokenizer else None)
    trained = 1 - 1 / record.held_out_every if record.held_out_every > 1 else 1
    return max(1, round(size / wide * trained))


def readers(graph: TaskGraph, text: str) -> list[Node]:
    """The trainings that read a text."""
    return [node for node in graph.nodes.values() if node.task.inputs.get("tokens") == text]


def passes(graph: TaskGraph, text: str, tokens: int | None, *, estimated: bool) -> dict[str, float]:
    """How often each training goes through a text of so many tokens, where that is more than once."""
    times = {node.name: node.task.record.text_tokens() / tokens for node in readers(graph, text)} if tokens else {}
    return {name: often for name, often in times.items() if often > (_SURELY if estimated else _ROUNDED)}


def shown_times(often: float, *, estimated: bool) -> str:
    """4.25, or "about 100" where it is an estimate."""
    if not estimated:
        return f"{often:.3g}"
    return f"about {round(often, 1 - math.floor(math.log10(often))):,g}"


def repetition_warnings(texts: Mapping[str, tuple[int, bool]], graph: TaskGraph, running: set[str]) -> list[str]:
    """What goes through its text too often. `texts`: tokens by task, and whether they are estimated.

    `running`: the tasks that run; for others it is too late.
    """
    found: list[tuple[float, str]] = []
    for text, (tokens, estimated) in texts.items():
        times = {n.id: n.task.record.text_tokens() / tokens for n in readers(graph, text) if n.id in running}
        if not times or max(times.values()) < TOO_OFTEN:
            continue
        worst = max(times, key=times.__getitem__)
        more = sum(often >= TOO_OFTEN for often in times.values()) - 1
        others = f"; so {'does one more training' if more == 1 else f'do {more:,} more trainings'}" if more else ""
        amount = f"about {short_count(tokens)}" if estimated else shown_count(tokens)
        often = shown_times(times[worst], estimated=estimated)
        remedy = f"give more text, or set {_field(graph.nodes[worst])} below {short_count(TOO_OFTEN * tokens)}"
        text_is = f"its text ({amount} tokens)"
        found.append((times[worst], f"{graph.nodes[worst].name} goes {often} times over {text_is}{others}: {remedy}"))
    found.sort(key=lambda pair: -pair[0])
    lines = list(dict.fromkeys(line for _, line in found))
    more = len(lines) - _SHOWN
    return lines[:_SHOWN] + ([f"{more:,} more texts are read {TOO_OFTEN} times or more"] if more > 0 else [])


def short_count(tokens: int) -> str:
    """Two digits, as a spec writes them: 1.2k, 12k, 1.2M."""
    return f"{tokens / 1000:.2g}k" if 1000 <= tokens < 10_000 else shown_count(float(f"{tokens:.2g}"))


def _field(node: Node) -> str:
    """Where a spec says how long a training is."""
    if node.task.kind == "pretrain":
        return "teacher.pretrain.tokens"
    if node.name.startswith("distill student"):
        return "the tokens of distill.phases" if getattr(node.task.record, "phase", None) else "distill.tokens"
    return "its tokens"
