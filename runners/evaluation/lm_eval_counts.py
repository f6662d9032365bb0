"""What happened to the documents of an lm-eval task on their way through a model: counted, and said in words.

lm-eval cuts a prompt that is too long, ends a text at its budget of tokens, scores an answer that is none of the
choices as wrong and a comparison with a number that is none as false, all of that with a line in a log at most. The
numbers look as any others. Here each of them is counted, by document, so that whoever reads a number can see it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Counts:
    """Of one task. Sets hold ids of documents."""

    documents: set[int] = field(default_factory=set)
    contexts_cut: set[int] = field(default_factory=set)  # left of what the model has positions for
    generations: int = 0
    generations_cut: int = 0  # that ended at their budget of tokens, without a stop
    no_choice: set[int] = field(default_factory=set)  # whose right answer is none of the choices
    no_number: set[int] = field(default_factory=set)  # of which the model's own numbers are none
    unscored: Counter[str] = field(default_factory=Counter)  # documents without a value, by "metric,filter"

    def to_json(self) -> dict[str, Any]:
        return {
            "documents": len(self.documents),
            "contexts_cut": len(self.contexts_cut),
            "generations": self.generations,
            "generations_cut": self.generations_cut,
            "answers_that_are_no_choice": len(self.no_choice),
            "answers_that_are_no_number": len(self.no_number),
            "unscored": dict(self.unscored),
        }


class Counted(defaultdict[str, Counts]):
    """Counts by task; a number that is asked for a group is that of all its tasks."""

    def __init__(self) -> None:
        super().__init__(Counts)

    def to_json(self) -> dict[str, Any]:
        return {name: counts.to_json() for name, counts in sorted(self.items())}

    def notes(self, tasks: Iterable[str], key: str | None = None) -> list[str]:
        """What has to be known of a number of these tasks; `key`: "metric,filter", to tell of that one, too."""
        found = [self[name] for name in tasks if name in self]
        documents = sum(len(one.documents) for one in found)
        cut = sum(len(one.contexts_cut) for one in found)
        generations, ended = (sum(getattr(one, name) for one in found) for name in ("generations", "generations_cut"))
        no_choice = sum(len(one.no_choice) for one in found)
        unscored = sum(one.unscored[key] for one in found) if key is not None else 0
        told = {
            f"{cut} of {documents} contexts were cut to the model's positions": cut,
            f"{ended} of {generations} generations were cut at their budget of tokens": ended,
            f"{no_choice} of {documents} documents count as wrong: their answer is none of their choices": no_choice,
            f"{unscored} of {documents} documents were dropped: they have no value": unscored,
        }
        return [text for text, count in told.items() if count]

    def no_number(self, tasks: Iterable[str]) -> str | None:
        """Why no number of these tasks is one: the model gave answers that are none."""
        found = [self[name] for name in tasks if name in self]
        bad = sum(len(one.no_number) for one in found)
        documents = sum(len(one.documents) for one in found)
        return f"the model's own numbers for {bad} of {documents} documents are not finite" if bad else None

    def count_unscored(self, samples: Mapping[str, list[dict[str, Any]]]) -> None:
        """From lm-eval's record of every document: which metrics each of them has no value of."""
        for name, documents in samples.items():
            by_filter: dict[str, list[set[str]]] = {}
            for document in documents:
                by_filter.setdefault(document["filter"], []).append(set(document["metrics"]))
            for filter_name, found in by_filter.items():
                for metric in sorted(set().union(*found)):
                    missing = sum(metric not in metrics for metrics in found)
                    if missing:
                        self[name].unscored[f"{metric},{filter_name}"] = missing


def members(results: Mapping[str, Any]) -> dict[str, list[str]]:
    """For every task and group of lm-eval's results, the tasks that it consists of."""
    groups: dict[str, list[str]] = results.get("group_subtasks", {})

    def tasks(name: str, above: tuple[str, ...]) -> list[str]:
        if name not in groups or name in above:
            return [name]
        return [task for child in groups[name] for task in tasks(child, (*above, name))]

    return {name: list(dict.fromkeys(tasks(name, ()))) for name in results["results"]}
