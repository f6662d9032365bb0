"""The base class of all task records: what the planner, the executor and the reports ask of a kind."""

from typing import ClassVar

from boomspec.core.types import Strict


class Record(Strict):
    """Parameters of one task. Subclasses set `kind` and `version`, and what else of their kind is not usual.

    `version` is part of the identity: raise it when the body of a kind starts to give other results.
    """

    kind: ClassVar[str]
    version: ClassVar[int]

    trains: ClassVar[bool] = False  # a model: it has workers and checkpoints, and writes metrics.jsonl
    reads_models: ClassVar[bool] = True  # else its body needs only what lies beside the models of its inputs
    shows_numbers: ClassVar[bool] = False  # of other tasks, on a page, and makes none of its own
    decides_results: ClassVar[bool] = True  # else no other task reads it, and the graph's id leaves it out
    numbers: ClassVar[tuple[str, ...]] = ()  # its files that hold numbers, where it writes a model beside them
    usual_work: ClassVar[int] = 1  # beside that of other kinds, where the costs of two tasks leave them equal
