"""The sections of the spec language about choices that need data: which layers, which patch order."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from boomspec.core.types import Strict
from boomspec.spec.validate import FieldError


class CalibrationSpec(Strict):
    """Training text that a choice is measured on, in windows of the data's sequence length."""

    sequences: Annotated[int, Field(ge=1, description="So many sequences, drawn with the seed.")] = 64


class KeepChoice(Strict):
    """Layers chosen by a score on calibration text; the key is the method, its value how many are kept."""

    block_influence: Annotated[
        int | None,
        Field(
            ge=1,
            description="Those with the highest 1 - cos(input, output) (ShortGPT, arXiv 2403.03853).",
            examples=[19],
        ),
    ] = None
    cosine_greedy: Annotated[
        int | None,
        Field(
            ge=1,
            description="Drops layers one by one, each time the one that changes the last state least.",
            examples=[19],
        ),
    ] = None
    calibration: Annotated[CalibrationSpec, Field(description="The text that it is decided on.")] = CalibrationSpec()

    @model_validator(mode="after")
    def _one_method(self) -> Self:
        if (self.block_influence is None) == (self.cosine_greedy is None):
            raise FieldError("exactly one of block_influence, cosine_greedy is needed")
        return self

    @property
    def method(self) -> Literal["block_influence", "cosine_greedy"]:
        return "cosine_greedy" if self.block_influence is None else "block_influence"

    @property
    def count(self) -> int:
        return self.block_influence or self.cosine_greedy or 0


SearchMethod = Literal["klpatch", "beam", "exact"]


class OrderSearch(Strict):
    """A patch order found by the KL divergence between teacher and candidates on calibration text."""

    search: Annotated[
        SearchMethod,
        Field(description="klpatch: greedy; beam: the best `width` sets of each size; exact: every subset of blocks."),
    ]
    width: Annotated[int | None, Field(ge=1, description="Of the beam; default: 4.", examples=[8])] = None
    direction: Annotated[
        Literal["teacher_to_candidate", "candidate_to_teacher"],
        Field(description="KL(teacher || candidate) or the other way round."),
    ] = "teacher_to_candidate"
    positions: Annotated[
        Literal["all", "last"], Field(description="Every position of a sequence, or its last one.")
    ] = "all"
    reduction: Annotated[
        Literal["token_mean", "sequence_max"],
        Field(description="Mean over tokens, or over each sequence's worst token."),
    ] = "token_mean"
    calibration: Annotated[CalibrationSpec, Field(description="The text that it is decided on.")] = CalibrationSpec()

    @model_validator(mode="after")
    def _width_of_a_beam(self) -> Self:
        if self.width is not None and self.search != "beam":
            raise FieldError("width goes with search: beam", at=("width",))
        return self
