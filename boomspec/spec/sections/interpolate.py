"""The section `interpolate`: which sizes are built, and in which order blocks are patched."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag

from boomspec.core.layers import ORDERS, Singletons
from boomspec.core.tasks.seam import SeamFit
from boomspec.core.types import Bytes, Number, SizesField, Strict, about
from boomspec.spec.sections.data import Calibration, CalibrationSpec
from boomspec.spec.sections.training import Positive
from boomspec.spec.validate import FieldError

SearchMethod = Literal["klpatch", "beam", "exact"]


class OrderSearch(Strict):
    """A patch order found by the KL divergence between teacher and candidates on calibration text."""

    search: SearchMethod
    """klpatch: greedy; beam: the best `width` sets of each size; exact: every subset of blocks."""
    width: int | None = about("Of the beam; default: 4.", [8], default=None, ge=1)
    direction: Literal["teacher_to_candidate", "candidate_to_teacher"] = "teacher_to_candidate"
    """KL(teacher || candidate) or the other way round."""
    positions: Literal["all", "last"] = about("Every position of a sequence, or its last one.", default="all")
    reduction: Literal["token_mean", "sequence_max"] = "token_mean"
    """Mean over tokens, or over each sequence's worst token."""
    calibration: Calibration = CalibrationSpec()

    def model_post_init(self, _: object) -> None:
        if self.width is not None and self.search != "beam":
            raise FieldError("width goes with search: beam", at=("width",))


class SeamSpec(Strict):
    """What is fitted where layers of the student and of the teacher meet, in closed form, and folded into weights."""

    fit: SeamFit
    """scale: one number for each seam; channels: one for each channel of the last write of a layer; matrix: a square
    matrix in front of that write; refit: the matrix of that write itself."""
    reach: Annotated[int, Field(ge=1)] | Literal["all"] | None = Field(None, examples=[1, "all"])
    """So many layers of the student next to each seam are fitted, or all of them. Default: 1. Not of scale."""
    ridge: Number | None = Field(None, examples=[0.01], gt=0)
    """Pull towards the weights as they are, as a share of the mean energy of what a weight is multiplied with.
    Default: 0.01. Not of scale."""
    calibration: Calibration = CalibrationSpec()

    def model_post_init(self, _: object) -> None:
        if self.fit == "scale":
            for name in ("reach", "ridge"):
                if getattr(self, name) is not None:
                    raise FieldError(f"{name} goes with the fits channels, matrix and refit", at=(name,))


def _order_form(value: Any) -> str:
    if isinstance(value, (dict, OrderSearch)):
        return "OrderSearch"
    return "list" if isinstance(value, (list, tuple)) else "name"


class BudgetSpec(Strict):
    """The model of most layers whose weights and KV cache fit into so much memory."""

    fits: Bytes = about("Bytes for weights and KV cache.", gt=0)
    context: Positive = about("Tokens of each sequence in the cache.")
    batch: Positive = about("Sequences in the cache.", default=1)


def _size_form(value: Any) -> str:
    return "BudgetSpec" if isinstance(value, (dict, BudgetSpec)) else "size"


SizeItem = Annotated[
    Annotated[SizesField, Tag("size")] | Annotated[BudgetSpec, Tag("BudgetSpec")], Discriminator(_size_form)
]


def _sizes_form(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "list"
    name = value is None or (isinstance(value, str) and not any(c.isdecimal() for c in value))
    return "name" if name else _size_form(value)


def _some_size(sizes: Any) -> Any:
    # A length on the tuple would be measured without the items that are wrong themselves.
    if sizes == ():
        raise FieldError("must have at least 1 item, not 0")
    return sizes


class InterpolateSpec(Strict):
    """Which sizes between student and teacher are built, and in which order blocks are patched."""

    order: Annotated[
        Annotated[Literal["first_to_last", "last_to_first"], Tag("name")]
        | Annotated[tuple[Annotated[int, Field(ge=0)], ...], Tag("list")]
        | Annotated[OrderSearch, Tag("OrderSearch")],
        Discriminator(_order_form),
    ] = Field("last_to_first", examples=["last_to_first", [3, 2, 1, 0], {"search": "klpatch"}])
    """Patch order: a name, the student layers (blocks) in the order of patching, or a search."""
    singletons: Singletons = "student"
    """Whose the blocks of one layer are: the student's, or by the rule of the published code."""
    sizes: Annotated[
        Annotated[Literal["all"], Tag("name")]
        | Annotated[SizesField, Tag("size")]
        | Annotated[BudgetSpec, Tag("BudgetSpec")]
        | Annotated[tuple[SizeItem, ...], Tag("list")],
        Discriminator(_sizes_form),
        AfterValidator(_some_size),
    ] = Field("all", examples=["all", "2.5B..3.5B step 0.25B", ["80%", "24 layers"], {"fits": "8GiB", "context": 4096}])
    """all, a size, a range, a budget, or a list of these. Student and teacher are always built."""
    choose: Literal["not_above", "nearest"] = "not_above"
    """Which model answers a size between two models. A budget is never exceeded."""
    seam: SeamSpec | None = Field(None, examples=[{"fit": "refit", "reach": "all"}])
    """Weights of its own that each size gets where layers of two owners meet. Default: none."""

    def model_post_init(self, _: object) -> None:
        if self.singletons == "reference" and self.order not in ORDERS:
            message = "reference is defined for the orders first_to_last and last_to_first only"
            raise FieldError(message, at=("singletons",))
        if "choose" in self.model_fields_set and self.sizes == "all":
            raise FieldError("all sizes are built: there is nothing to choose", at=("choose",))
