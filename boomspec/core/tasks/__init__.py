"""The task kinds: a module of this folder is one kind, with its record and what the record consists of.

A record holds exactly what identifies a result: it is the `params` of a task. Where its inputs come from (other tasks,
sources), where it runs and what it is called are in the graph, outside of the identity. To add a kind, add a module
here, with a subclass of `Record`, and its body as `runners/tasks/<kind>.py`: both are found by their names.
"""

from importlib import import_module
from pkgutil import iter_modules

from boomspec.core.tasks.baseline import Baseline, LaCo, Subset
from boomspec.core.tasks.check import BuiltSize, Check, Outline
from boomspec.core.tasks.comparison import Compared, Comparison
from boomspec.core.tasks.dequantize import Dequantize
from boomspec.core.tasks.distill import Distill, Faithful
from boomspec.core.tasks.evaluate import Evaluate, HeldOut, LmEval
from boomspec.core.tasks.interpolate import Interpolate
from boomspec.core.tasks.pretrain import Pretrain
from boomspec.core.tasks.recipe import Algorithms, Determinism, Optimizer, Precision, Recipe, Schedule
from boomspec.core.tasks.record import Architecture, Record
from boomspec.core.tasks.report import Cell, Report, Series
from boomspec.core.tasks.search import Calibration, LayerChoice, PatchOrder, Search
from boomspec.core.tasks.tokenize import Tokenize, TrainTokenizer

__all__ = [
    "KINDS", "SHOWING", "TRAININGS", "Algorithms", "Architecture", "Baseline", "BuiltSize", "Calibration", "Cell",
    "Check", "Compared", "Comparison", "Dequantize", "Determinism", "Distill", "Evaluate", "Faithful", "HeldOut",
    "Interpolate", "LaCo", "LayerChoice", "LmEval", "Optimizer", "Outline", "PatchOrder", "Precision", "Pretrain",
    "Recipe", "Record", "Report", "Schedule", "Search", "Series", "Subset", "Tokenize", "TrainTokenizer",
]  # fmt: skip


def _kinds() -> dict[str, type[Record]]:
    modules = [import_module(f"{__name__}.{found.name}") for found in iter_modules(__path__)]
    classes = [value for module in modules for value in vars(module).values() if isinstance(value, type)]
    return {found.kind: found for found in classes if issubclass(found, Record) and "kind" in vars(found)}


KINDS = _kinds()
TRAININGS = frozenset(kind for kind, record in KINDS.items() if record.trains)
SHOWING = frozenset(kind for kind, record in KINDS.items() if record.shows_numbers)
