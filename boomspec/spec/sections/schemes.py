"""Parts of the section `distill` that say how it is distilled: over assistants, in generations."""

from typing import Annotated, Any

from pydantic import AfterValidator, Discriminator, Field, Tag

from boomspec.core.layers import KeepRule
from boomspec.core.types import Count, SizesField, Strict, about
from boomspec.spec.validate import FieldError, only_one


def _keep_form(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "list"
    return "KeepRule" if isinstance(value, (dict, KeepRule)) else "count"


class AssistantSpec(Strict):
    """A model that stands between teacher and student (arXiv 1902.03393)."""

    keep: (
        Annotated[
            Annotated[Annotated[int, Field(ge=1)], Tag("count")]
            | Annotated[tuple[Annotated[int, Field(ge=0)], ...], Tag("list")]
            | Annotated[KeepRule, Tag("KeepRule")],
            Discriminator(_keep_form),
        ]
        | None
    ) = Field(None, examples=[{"every": 2}, 24, [0, 1, 2, 4, 6]])
    """The teacher's layers that the assistant starts from, those of the student among them. It is distilled first."""
    size: SizesField | None = Field(None, examples=["24 layers", "80%"])
    """A size between student and teacher: a student is distilled first, and the assistant is interpolated from it."""
    tokens: Count | None = about("Training tokens on its way. Default: as the student.", ["250k"], default=None, gt=0)

    def model_post_init(self, _: object) -> None:
        only_one(self, "keep", "size")
        if self.size is not None and len(self.size.sizes) != 1:
            raise FieldError("an assistant is one size", at=("size",), hint="list an assistant for each")


def _some_assistant(assistants: tuple[AssistantSpec, ...]) -> tuple[AssistantSpec, ...]:
    if not assistants:
        raise FieldError("must have at least 1 item, not 0")
    return assistants


Assistants = Annotated[tuple[AssistantSpec, ...], AfterValidator(_some_assistant)]
