"""Count truncated prompts and generations, NaN scores and unscored documents in lm-eval.

lm-eval cuts a prompt that is too long, ends a text at its budget of tokens, scores an answer that is none of the
choices as wrong and a comparison with NaN as false, all of that with a line in a log at most. Here each of them is
counted, by document, so that a reader of the numbers can see it.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Counts:
    """Of one task. Sets hold ids of documents."""

    documents: set[int] = field(default_factory=set)
    contexts_cut: set[int] = field(default_factory=set)  # to the positions of the model, from the left
    generations: int = 0
    generations_cut: int = 0  # that ended at their budget of tokens, without a stop
    answers_that_are_no_choice: set[int] = field(default_factory=set)
    answers_that_are_no_number: set[int] = field(default_factory=set)  # the model's own numbers are not finite
    unscored: dict[str, int] = field(default_factory=dict)  # documents without a value, by "metric,filter"
    unfinished: dict[int, int] | None = None  # texts whose thought does not end, by document; None: nobody looks

    def to_json(self) -> dict[str, Any]:
        found = {name: len(value) if isinstance(value, set) else value for name, value in vars(self).items()}
        del found["unfinished"]
        if self.unfinished is not None:
            found["unfinished_thoughts"] = sum(self.unfinished.values())
        return found


class Counted(defaultdict[str, Counts]):
    """Counts by task; a group has those of all its tasks."""

    def __init__(self) -> None:
        super().__init__(Counts)

    def taken(self) -> "Counted":
        """These counts; none are left here."""
        found = Counted()
        found.update(self)
        self.clear()
        return found

    def to_json(self) -> dict[str, Any]:
        return {name: counts.to_json() for name, counts in sorted(self.items())}

    def _sums(self, tasks: Iterable[str]) -> Counter[str]:
        sums: Counter[str] = Counter()
        for counts in (self[name].to_json() for name in tasks if name in self):
            sums.update(counts.pop("unscored"))
            sums.update(counts)
        return sums

    def notes(self, tasks: Iterable[str], key: str) -> list[str]:
        """What a reader of a number of these tasks has to know; `key`: its "metric,filter"."""
        sums = self._sums(tasks)
        documents = f"of {sums['documents']} documents"
        notes = {
            "contexts_cut": f"of {sums['documents']} contexts were cut to the model's positions",
            "generations_cut": f"of {sums['generations']} generations were cut at their budget of tokens",
            "unfinished_thoughts": f"of {sums['generations']} answers are empty: their thought does not end",
            "answers_that_are_no_choice": f"{documents} count as wrong: their answer is none of their choices",
            key: f"{documents} were dropped: they have no value",
        }
        return [f"{sums[name]} {text}" for name, text in notes.items() if sums[name]]

    def no_number(self, tasks: Iterable[str]) -> str | None:
        """Why the metrics of these tasks have no value; None where all numbers of the model are finite."""
        sums = self._sums(tasks)
        bad, documents = sums["answers_that_are_no_number"], sums["documents"]
        return f"the model's own numbers for {bad} of {documents} documents are not finite" if bad else None

    def count_unscored(self, samples: Mapping[str, list[dict[str, Any]]]) -> None:
        """Count from lm-eval's record of every document which metrics have no value for it."""
        for name, documents in samples.items():
            by_filter: dict[str, list[set[str]]] = {}
            for document in documents:
                by_filter.setdefault(document["filter"], []).append(set(document["metrics"]))
            for filter_name, found in by_filter.items():
                for metric in sorted(set().union(*found)):
                    if missing := sum(metric not in metrics for metrics in found):
                        self[name].unscored[f"{metric},{filter_name}"] = missing


def members(results: Mapping[str, Any]) -> dict[str, list[str]]:
    """For every task and group of lm-eval's results, the tasks that it consists of."""
    groups: dict[str, list[str]] = results.get("group_subtasks", {})

    def tasks(name: str, above: tuple[str, ...]) -> list[str]:
        if name not in groups or name in above:
            return [name]
        return [task for child in groups[name] for task in tasks(child, (*above, name))]

    return {name: list(dict.fromkeys(tasks(name, ()))) for name in results["results"]}
