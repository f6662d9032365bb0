"""The section `baselines`: models that the family is compared with."""

from typing import Annotated

from pydantic import AfterValidator, Field

from boomspec.core.types import AlsoText, Count, Number, Strict, about
from boomspec.spec.sections.data import Calibration, CalibrationSpec
from boomspec.spec.validate import FieldError, only_one


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


class BaselineItem(Strict):
    """One baseline: the key is the kind."""

    naive_pruning: NaivePruning | None = about("The same layers, with nothing distilled.", [{}], default=None)
    random_init: RandomInit | None = Field(None, examples=[{"tokens": "250k"}])
    """A student with random weights, distilled and patched alike."""
    standard_distillation: StandardDistillation | None = about("Every size distilled by itself.", [{}], default=None)
    shortgpt: ShortGPT | None = Field(None, examples=[{}, {"calibration": {"sequences": 64}}])
    """The teacher without its least influential layers."""
    laco: LaCoSpec | None = about("The teacher with layers collapsed into one.", [{}, {"threshold": 0.6}], default=None)

    def model_post_init(self, _: object) -> None:
        only_one(self, *type(self).model_fields)


def _each_once(items: tuple[BaselineItem, ...]) -> tuple[BaselineItem, ...]:
    kinds = [kind for item in items for kind in item.model_fields_set]
    if twice := sorted({kind for kind in kinds if kinds.count(kind) > 1}):
        raise FieldError(f"'{twice[0]}' is listed twice")
    return items


Baselines = Annotated[
    tuple[Annotated[BaselineItem, AlsoText(lambda kind: {kind: {}}, *BaselineItem.model_fields)], ...],
    AfterValidator(_each_once),
]
