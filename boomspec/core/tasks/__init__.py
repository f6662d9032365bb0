"""The task kinds: modules of this folder hold their records, and what the records consist of.

A record holds exactly what identifies a result: it is the `params` of a task. Where its inputs come from (other tasks,
sources), where it runs and what it is called are in the graph, outside of the identity. To add a kind, add a module
here, with a subclass of `Record`, and its body as `runners/tasks/<kind>.py`: both are found by their names.
"""

from boomspec.core.tasks.asking import Chat, Generation, Thinking
from boomspec.core.tasks.blend import Blend
from boomspec.core.tasks.blockwise import BlockStates, DistillBlock, JoinBlocks
from boomspec.core.tasks.check import BuiltSize, Check, Outline
from boomspec.core.tasks.deployment import Speed, Texts
from boomspec.core.tasks.evaluate import Evaluate, HeldOut, LmEval
from boomspec.core.tasks.generate import Generate, Sampling
from boomspec.core.tasks.models import Baseline, Dequantize, Interpolate, LaCo, Subset
from boomspec.core.tasks.record import Architecture, Determinism, Faithful, Optimizer, Precision, Recipe, Record
from boomspec.core.tasks.report import Cell, Compared, Comparison, Report, Series
from boomspec.core.tasks.seam import Seam
from boomspec.core.tasks.search import Calibration, LayerChoice, PatchOrder, RunDistances, Search
from boomspec.core.tasks.teacher_outputs import Samples, Stored, TeacherOutputs, TopTokens
from boomspec.core.tasks.tokenize import Conversations, Tokenize, TrainTokenizer
from boomspec.core.tasks.training import Distill, During, OnPolicy, OtherTeachers, Patched, Phase, Pretrain
from boomspec.core.tasks.transfer import Transfer
from boomspec.core.types import kinds_in

__all__ = [
    "KINDS", "SHOWING", "TRAININGS", "Architecture", "Baseline", "Blend", "BlockStates", "BuiltSize", "Calibration",
    "Cell", "Chat", "Check", "Compared", "Comparison", "Conversations", "Dequantize", "Determinism", "Distill",
    "DistillBlock", "During", "Evaluate", "Faithful", "Generate", "Generation", "HeldOut", "Interpolate",
    "JoinBlocks", "LaCo", "LayerChoice", "LmEval", "OnPolicy", "Optimizer", "OtherTeachers", "Outline", "PatchOrder",
    "Patched", "Phase", "Precision", "Pretrain", "Recipe", "Record", "Report", "RunDistances", "Samples", "Sampling",
    "Seam", "Search", "Series", "Speed", "Stored", "Subset", "TeacherOutputs", "Texts", "Thinking", "Tokenize",
    "TopTokens", "TrainTokenizer", "Transfer",
]  # fmt: skip

KINDS = kinds_in(__name__, Record)
TRAININGS = frozenset(kind for kind, record in KINDS.items() if record.trains)
SHOWING = frozenset(kind for kind, record in KINDS.items() if record.shows_numbers)
