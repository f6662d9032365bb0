"""The kind `comparison`: the experiments of one spec on a page."""

from typing import ClassVar

from boomspec.core.tasks.record import Record
from boomspec.core.tasks.report import Cell
from boomspec.core.types import Strict


class Compared(Strict):
    """One experiment of a comparison: its coordinates ({"variant": "no-kl", "seed": "1"}) and its numbers."""

    label: str
    axes: dict[str, str]
    cells: tuple[Cell, ...]


class Comparison(Record):
    """The experiments of one spec on one page. Inputs: those of the cells."""

    kind: ClassVar[str] = "comparison"
    version: ClassVar[int] = 1
    reads_models: ClassVar[bool] = False
    shows_numbers: ClassVar[bool] = True

    experiments: tuple[Compared, ...]
