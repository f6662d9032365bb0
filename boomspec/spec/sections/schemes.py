"""Parts of the section `distill` that say how it is distilled: on whose text, over assistants, in generations."""

from typing import Annotated, Any

from pydantic import AfterValidator, Discriminator, Field, Tag

from boomspec.core.layers import KeepRule
from boomspec.core.losses import Losses
from boomspec.core.types import Count, Number, SizesField, Strict, about
from boomspec.spec.validate import FieldError, only_one


def some_loss(losses: Losses) -> Losses:
    if not losses.terms():
        raise FieldError(f"at least one loss is needed: {', '.join(Losses.model_fields)}")
    return losses


class SamplingSpec(Strict):
    """How the next token is drawn from a model's distribution."""

    temperature: Number = about("Logits are divided by it before the softmax.", default=1.0, gt=0)
    top_k: int | None = about("Draw from so many most probable tokens. Default: from all.", [20], default=None, ge=1)
    top_p: Number = Field(1.0, examples=[0.95], gt=0, le=1)
    """Draw from the fewest most probable tokens that have so much of the probability together."""


class GeneratedSpec(SamplingSpec):
    """Text that the teacher writes (arXiv 1606.07947), on which the student is trained in the place of the data's."""

    tokens: Annotated[Count, Field(gt=0)] = about("So many tokens are written; a longer training repeats them.")
    prompt_tokens: int = about("Of each sequence, from the data; 0: the teacher begins.", [64], default=32, ge=0)
    label_prompts: bool = about("Train on the tokens of the prompts, too.", default=False)


class OnPolicySpec(SamplingSpec):
    """Steps in which the student is trained on what it writes itself (arXiv 2306.13649)."""

    share: Number = about("Of the steps.", default=0.5, gt=0, le=1)
    prompt_tokens: int = about("Of each sequence, from the data; 0: the student begins.", [64], default=32, ge=0)
    new_tokens: int | None = Field(None, examples=[96], ge=1)
    """That the student writes. Default: up to data.sequence_length."""
    teacher_share: Number = Field(0.0, examples=[0.2], ge=0, lt=1)
    """The student draws from the mean of both distributions, the teacher's with this share (arXiv 2306.08543)."""

    long_range: Number = Field(0.0, examples=[1.0], ge=0)
    """Factor of the long-range part of the reverse KL's gradient: a token is credited with what the student wrote
    behind it, by a policy gradient with length normalisation (arXiv 2306.08543). Goes with the loss reverse_kl."""

    def model_post_init(self, _: object) -> None:
        if self.long_range and (self.temperature != 1 or self.top_k is not None or self.top_p != 1):
            message = (
                "a long-range term needs what the distributions themselves give: temperature 1, no top_k, no top_p"
            )
            raise FieldError(message, at=("long_range",))

    def length(self, sequence_length: int) -> int:
        """Tokens of a sequence that the student writes, with its prompt."""
        return sequence_length if self.new_tokens is None else max(1, self.prompt_tokens) + self.new_tokens


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
