"""The sections of the spec language about baselines: models that the family is compared with."""

from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from boomspec.core.types import Count, Number, Strict
from boomspec.spec.sections.data import CalibrationSpec
from boomspec.spec.validate import FieldError


class NaivePruning(Strict):
    """The same layer plans made of the untrained student's layers: subsets of the teacher's layers."""


class RandomInit(Strict):
    """A student of the same shape with random weights, distilled alike, then patched."""

    tokens: Annotated[
        Count | None, Field(gt=0, description="Training tokens. Default: as the student.", examples=["250k"])
    ] = None


class StandardDistillation(Strict):
    """A student of each intermediate size, initialised by the same rule, distilled for the same tokens."""


class ShortGPT(Strict):
    """The teacher without its layers of lowest block influence (arXiv 2403.03853)."""

    calibration: Annotated[CalibrationSpec, Field(description="The text that it is decided on.")] = CalibrationSpec()


class LaCoSpec(Strict):
    """Following layers collapsed into one while the output stays similar (arXiv 2402.11187)."""

    merge: Annotated[int, Field(ge=2, description="So many following layers become one.")] = 4
    interval: Annotated[int, Field(ge=1, description="Layers to move down after a merge.")] = 2
    threshold: Annotated[
        Number, Field(ge=-1, lt=1, description="A merge is kept while the cosine to the teacher is above.")
    ] = 0.5
    calibration: Annotated[CalibrationSpec, Field(description="The text that it is decided on.")] = CalibrationSpec()


class BaselineItem(Strict):
    """One baseline: the key is the kind."""

    naive_pruning: Annotated[
        NaivePruning | None, Field(description="The same layers, with nothing distilled.", examples=[{}])
    ] = None
    random_init: Annotated[
        RandomInit | None,
        Field(description="A student with random weights, distilled and patched alike.", examples=[{"tokens": "250k"}]),
    ] = None
    standard_distillation: Annotated[
        StandardDistillation | None, Field(description="Every size distilled by itself.", examples=[{}])
    ] = None
    shortgpt: Annotated[
        ShortGPT | None,
        Field(
            description="The teacher without its least influential layers.",
            examples=[{}, {"calibration": {"sequences": 64}}],
        ),
    ] = None
    laco: Annotated[
        LaCoSpec | None,
        Field(description="The teacher with layers collapsed into one.", examples=[{}, {"threshold": 0.6}]),
    ] = None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            allowed = ", ".join(type(self).model_fields)
            raise FieldError(f"exactly one of {allowed} is needed: {' and '.join(given) or 'none'} given")
        return self

    @property
    def is_trained(self) -> bool:
        return self.random_init is not None or self.standard_distillation is not None

    @property
    def reads_text(self) -> bool:
        return self.naive_pruning is None


def baseline_item(value: Any) -> Any:
    """A baseline's name alone means its defaults."""
    return {value: {}} if isinstance(value, str) else value
