"""Fills in costs that depend on tokenized text, where the store has that text.

held-out text         its tokens are in the token artifact's meta.json
padded sequences      their real tokens follow from the lengths of the documents in train.bin
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from boomspec.core.graph import Cost, TaskGraph
from boomspec.core.tasks import Record
from boomspec.core.tasks.cost import TextCounts
from boomspec.store import Store

_SCANNED = 1 << 25  # bytes of a stream at most; longer ones are judged by their beginning


def known_costs(graph: TaskGraph, store: Store) -> dict[str, Cost | None]:
    """The cost of every task, as far as it follows from the graph and the store."""
    return {i: refined(node.cost, node.task.record, node.task.inputs, store) for i, node in graph.nodes.items()}


def refined(cost: Cost | None, record: Record, inputs: Mapping[str, str], store: Store) -> Cost | None:
    """A task's cost with what its token artifact says; as it is where there is none, or a damaged one."""
    if cost is None or not cost.flops_per_real_token or "tokens" not in inputs:
        return cost
    try:
        return record.counted(cost, _Text(store, inputs["tokens"]))
    except (OSError, ValueError, KeyError, TypeError):
        return cost


@dataclass(frozen=True)
class _Text(TextCounts):
    """What the token artifact `tokens` says of its text."""

    store: Store
    tokens: str

    def held_out(self) -> int:
        return int(_meta(self.store, self.tokens)["held_out"]["tokens"])

    def mean_labels(self, length: int) -> float:
        return _mean_labels(self.store, self.tokens, length)


@lru_cache(1 << 10)
def _meta(store: Store, tokens: str) -> dict[str, Any]:
    meta: dict[str, Any] = json.loads(store.read("tokenize", tokens, "meta.json"))
    return meta


@lru_cache(1 << 6)
def _mean_labels(store: Store, tokens: str, length: int) -> float:
    """Labels of the mean padded row: its document's tokens but the first, `length` at most."""
    meta = _meta(store, tokens)
    stream = array("H" if meta["dtype"] == "uint16" else "I")
    stream.frombytes(store.read("tokenize", tokens, "train.bin", most=_SCANNED))
    labels = documents = 0
    prefix, at = meta.get("prefix") or [], -1
    before = 1 if prefix == [meta["eos"]] else 0  # of a document's row in front of it: see `runners/data/tokens.py`
    unlabelled = max(0, len(prefix) - 1)
    try:
        if prefix in ([], [meta["eos"]]):
            at = stream.index(meta["eos"])  # the stream begins with one
        while True:
            end = stream.index(meta["eos"], at + 1)
            # of `end - at` tokens, its end-of-text among them
            labels += min(end - at - 1 + before, length) - unlabelled
            documents += 1
            at = end
    except ValueError:
        return labels / documents if documents else 0.0
