"""The section `baselines`: models that the family is compared with."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from boomspec.core.types import AlsoText, Count, Number, Strict, about
from boomspec.spec.sections.data import Calibration, CalibrationSpec
from boomspec.spec.validate import FieldError, goes_with, only_one


class NaivePruning(Strict):
    """The same layer plans made of the untrained student's layers: subsets of the teacher's layers."""


class RandomInit(Strict):
    """A student of the same shape with random weights, distilled alike, then patched."""

    tokens: Count | None = about("Training tokens. Default: as the student.", ["250k"], default=None, gt=0)


class StandardDistillation(Strict):
    """A student of each intermediate size, initialised by the same rule, distilled for the same tokens."""


class ShortGPT(Strict):
    """The teacher without its layers of lowest block influence (arXiv 2403.03853)."""

    calibration: Calibration = CalibrationSpec()


class LaCoSpec(Strict):
    """Following layers collapsed into one while the output stays similar (arXiv 2402.11187)."""

    merge: int = about("So many following layers become one.", default=4, ge=2)
    interval: int = about("Layers to move down after a merge.", default=2, ge=1)
    threshold: Number = about("A merge is kept while the cosine to the teacher is above.", default=0.5, ge=-1, lt=1)
    calibration: Calibration = CalibrationSpec()


class DroppedRun(Strict):
    """How the run of following layers is chosen that a model goes without."""

    by: Literal["angular_distance", "block_influence"] = "angular_distance"
    """The run over which the state turns least, by the mean angle (arXiv 2403.17887) or by the mean cosine."""
    positions: Literal["all", "last"] = about("Every position of a sequence, or its last one.", default="all")
    calibration: Calibration = CalibrationSpec()


class ContiguousDrop(DroppedRun):
    """The teacher without one run of layers, as it is and distilled by KL alone (Minitron, arXiv 2408.11796)."""

    distilled: bool = about("Also distil each size, on the teacher's logits alone.", default=True)
    tokens: Count | None = about("Training tokens of each size. Default: as the student.", ["250k"], default=None, gt=0)

    def model_post_init(self, _: object) -> None:
        goes_with(self, "distilled", "tokens")


class LinearPatch(DroppedRun):
    """The teacher without one run of layers, mended by one fitted matrix in front of the gap (arXiv 2505.24680)."""

    fit: Literal["channels", "matrix", "refit"] = "matrix"
    """Of the last write in front of the gap: one number for each channel, a square matrix in front of it, or the matrix
    of that write itself."""
    ridge: Number = about("Pull towards the weights as they are, as in interpolate.seam.", default=0.01, gt=0)


class CrossPatching(Strict):
    """Another student's layers in the place of the teacher's: whether layers fit only those they were trained with."""

    seed: int | None = Field(None, examples=[7], ge=0, le=2**32 - 1)
    """Of the other student's training. Default: the seed that follows the spec's."""
    initial: Literal["teacher", "random"] = "teacher"
    """What the other student begins as: the teacher's layers, as the student does, or random weights."""
    tokens: Count | None = about("Its training tokens. Default: as the student.", ["250k"], default=None, gt=0)


class BaselineItem(Strict):
    """One baseline: the key is the kind."""

    naive_pruning: NaivePruning | None = about("The same layers, with nothing distilled.", [{}], default=None)
    random_init: RandomInit | None = Field(None, examples=[{"tokens": "250k"}])
    """A student with random weights, distilled and patched alike."""
    standard_distillation: StandardDistillation | None = about("Every size distilled by itself.", [{}], default=None)
    shortgpt: ShortGPT | None = Field(None, examples=[{}, {"calibration": {"sequences": 64}}])
    """The teacher without its least influential layers."""
    laco: LaCoSpec | None = about("The teacher with layers collapsed into one.", [{}, {"threshold": 0.6}], default=None)

    contiguous_drop: ContiguousDrop | None = Field(None, examples=[{}, {"by": "block_influence"}])
    """The teacher without the run of layers that changes its state least, as it is and distilled."""
    linear_patch: LinearPatch | None = Field(None, examples=[{}, {"fit": "channels"}])
    """The same, mended by one matrix that is fitted on text instead of distilled."""
    cross_patching: CrossPatching | None = Field(None, examples=[{}, {"seed": 7}])
    """Another student's layers patched into the student."""

    def model_post_init(self, _: object) -> None:
        only_one(self, *type(self).model_fields)


TRAINED = ("random_init", "contiguous_drop", "cross_patching")  # those with tokens of their own
IN_PHASES = ("random_init", "cross_patching")  # of these, those that are trained as the student is, in its phases


def _each_once(items: tuple[BaselineItem, ...]) -> tuple[BaselineItem, ...]:
    kinds = [kind for item in items for kind in item.model_fields_set]
    if twice := sorted({kind for kind in kinds if kinds.count(kind) > 1}):
        raise FieldError(f"'{twice[0]}' is listed twice")
    return items


Baselines = Annotated[
    tuple[Annotated[BaselineItem, AlsoText(lambda kind: {kind: {}}, *BaselineItem.model_fields)], ...],
    AfterValidator(_each_once),
]
