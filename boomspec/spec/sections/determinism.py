"""The section `determinism`: how far a result has to be repeatable."""

from pydantic import Field

from boomspec.core.tasks.record import Algorithms, Determinism
from boomspec.core.types import Number, Strict, about


class DeterminismSpec(Strict):
    """Which kernels the models compute with, and how exactly a repetition has to agree.

    `algorithms` and `tf32` change the bits of results and are part of their identity; `tolerance` is not.
    """

    algorithms: Algorithms = "deterministic"
    """deterministic: the same bits on every run wherever torch can, a warning elsewhere; strict: a task fails where
    torch cannot; any: the fastest."""
    tf32: bool = about("GPUs may round the factors of fp32 products to 10 bits, which is faster.", default=False)
    tolerance: Number = Field(0.0, ge=0)
    """How far apart `boomspec verify` lets numbers be, absolutely or relatively; 0: not one bit."""


def determinism(section: DeterminismSpec) -> Determinism | None:
    """What goes into the records of tasks that compute; None for the defaults, which are then not written."""
    if not section.tf32 and section.algorithms == "deterministic":
        return None
    return Determinism(algorithms=section.algorithms, tf32=section.tf32)
