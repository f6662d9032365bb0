"""The section `interpolate`: which sizes are built, and in which order blocks are patched."""

from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from boomspec.core.layers import ORDERS, Singletons
from boomspec.core.types import Bytes, SizesField, Strict
from boomspec.spec.sections.data import CalibrationSpec
from boomspec.spec.sections.training import Positive
from boomspec.spec.validate import FieldError

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


def _order_form(value: Any) -> str:
    return "search" if isinstance(value, (dict, OrderSearch)) else _name_or_list(value)


def _name_or_list(value: Any) -> str:
    return "list" if isinstance(value, (list, tuple)) else "name"


class BudgetSpec(Strict):
    """The model of most layers whose weights and KV cache fit into so much memory."""

    fits: Annotated[Bytes, Field(gt=0, description="Bytes for weights and KV cache.")]
    context: Annotated[Positive, Field(description="Tokens of each sequence in the cache.")]
    batch: Annotated[Positive, Field(description="Sequences in the cache.")] = 1


def _size_form(value: Any) -> str:
    return "budget" if isinstance(value, (dict, BudgetSpec)) else "size"


SizeItem = Annotated[
    Annotated[SizesField, Tag("size")] | Annotated[BudgetSpec, Tag("budget")], Discriminator(_size_form)
]


def _sizes_form(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "list"
    name = value is None or (isinstance(value, str) and not any(c.isdecimal() for c in value))
    return "name" if name else _size_form(value)


class InterpolateSpec(Strict):
    """Which sizes between student and teacher are built, and in which order blocks are patched."""

    order: Annotated[
        Annotated[Literal["first_to_last", "last_to_first"], Tag("name")]
        | Annotated[tuple[Annotated[int, Field(ge=0)], ...], Tag("list")]
        | Annotated[OrderSearch, Tag("search")],
        Discriminator(_order_form),
        Field(
            description="Patch order: a name, the student layers (blocks) in the order of patching, or a search.",
            examples=["last_to_first", [3, 2, 1, 0], {"search": "klpatch"}],
        ),
    ] = "last_to_first"
    singletons: Annotated[
        Singletons,
        Field(description="Whose the blocks of one layer are: the student's, or by the rule of the published code."),
    ] = "student"
    sizes: Annotated[
        Annotated[Literal["all"], Tag("name")]
        | Annotated[SizesField, Tag("size")]
        | Annotated[BudgetSpec, Tag("budget")]
        | Annotated[tuple[SizeItem, ...], Tag("list")],
        Discriminator(_sizes_form),
        Field(
            description="all, a size, a range, a budget, or a list of these. Student and teacher are always built.",
            examples=["all", "2.5B..3.5B step 0.25B", ["80%", "24 layers"], {"fits": "8GiB", "context": 4096}],
        ),
    ] = "all"
    choose: Annotated[
        Literal["not_above", "nearest"],
        Field(description="Which model answers a size between two models. A budget is never exceeded."),
    ] = "not_above"

    @field_validator("sizes", mode="after")
    @classmethod
    def _some_size(cls, sizes: Any) -> Any:
        # A length on the tuple would be measured without the items that are wrong themselves.
        if sizes == ():
            raise FieldError("must have at least 1 item, not 0")
        return sizes

    @model_validator(mode="after")
    def _reference_needs_direction(self) -> Self:
        if self.singletons == "reference" and self.order not in ORDERS:
            message = "reference is defined for the orders first_to_last and last_to_first only"
            raise FieldError(message, at=("singletons",))
        if "choose" in self.model_fields_set and self.sizes == "all":
            raise FieldError("all sizes are built: there is nothing to choose", at=("choose",))
        return self
