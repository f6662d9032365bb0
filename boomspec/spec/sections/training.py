"""The sections of the spec language about training: how much, with which optimiser, on which losses."""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from boomspec.core.losses import KL, CrossEntropy, HiddenCosine, Losses
from boomspec.core.tasks import Precision
from boomspec.core.types import Count, Number, ShareField, Strict, parse_share
from boomspec.spec.validate import FieldError

Positive = Annotated[Count, Field(gt=0)]
NotNegative = Annotated[Count, Field(ge=0)]


Beta = Annotated[Number, Field(ge=0, lt=1)]

_WARMUP = "1%"


class OptimizerSpec(Strict):
    """AdamW. Weight decay acts on matrices only."""

    lr: Annotated[Number, Field(gt=0, description="Peak learning rate.")] = 3e-4
    betas: Annotated[tuple[Beta, Beta], Field(description="Decay of the first and second moments.")] = (0.9, 0.95)
    eps: Annotated[Number, Field(gt=0, description="Added to the root of the second moment.")] = 1e-8
    weight_decay: Annotated[Number, Field(ge=0, description="Decoupled, times the learning rate.")] = 0.1
    clip: Annotated[Number, Field(ge=0, description="Largest gradient norm; 0 switches clipping off.")] = 1.0


class ScheduleSpec(Strict):
    """Linear warm-up, then `kind` down to `final` times the peak learning rate."""

    kind: Annotated[Literal["cosine", "linear", "constant"], Field(description="Shape of the decay.")] = "cosine"
    warmup: Annotated[
        ShareField,
        Field(description="Share of the steps, or a number of steps.", json_schema_extra={"default": _WARMUP}),
    ] = parse_share(_WARMUP)
    final: Annotated[Number, Field(ge=0, le=1, description="Last learning rate as a share of the peak.")] = 0.0

    @model_validator(mode="after")
    def _constant_has_no_end(self) -> Self:
        if self.kind == "constant" and "final" in self.model_fields_set:
            raise FieldError("a constant schedule has no final learning rate", at=("final",))
        return self


class Training(Strict):
    """How much and how a model is trained."""

    tokens: Annotated[Positive, Field(description="Training tokens in all.")]
    batch_tokens: Annotated[
        Positive,
        Field(description="Tokens of one optimiser step, rounded to whole sequences; never depends on the machine."),
    ]
    optimizer: Annotated[OptimizerSpec, Field(description="AdamW and its settings.")] = OptimizerSpec()
    schedule: Annotated[ScheduleSpec, Field(description="The learning rate over the steps.")] = ScheduleSpec()
    precision: Annotated[
        Precision, Field(description="bf16: autocast with fp32 master weights, a frozen teacher in bf16.")
    ] = "bf16"


class FaithfulSpec(Strict):
    """Quirks of the published code (arXiv 2510.05064), to reproduce its numbers. None is a good default."""

    padding: Annotated[
        bool,
        Field(description="One document a sequence, cut or padded to its length; `tokens` then counts padding."),
    ] = False
    kl_on_padding: Annotated[bool, Field(description="The KL term is averaged over padding, too.")] = False
    summed_micro_batches: Annotated[
        int, Field(ge=1, description="Gradients of so many micro batches are summed, not averaged, before clipping.")
    ] = 1

    @model_validator(mode="after")
    def _padding_first(self) -> Self:
        if self.kl_on_padding and not self.padding:
            raise FieldError("there is no padding to average over: set padding: true", at=("kl_on_padding",))
        return self


class DistillSpec(Training):
    """Distillation of the student from the teacher."""

    faithful: Annotated[
        FaithfulSpec | None,
        Field(
            description="Quirks of the published code, to reproduce its numbers. Default: none of them.",
            examples=[{"padding": True, "kl_on_padding": True}],
        ),
    ] = None
    losses: Annotated[Losses, Field(description="Terms of the loss; the key is the kind.")] = Losses(
        cross_entropy=CrossEntropy(), kl=KL(), hidden_cosine=HiddenCosine()
    )

    @field_validator("losses", mode="after")
    @classmethod
    def _some_loss(cls, losses: Losses) -> Losses:
        if not losses.terms():
            raise FieldError(f"at least one loss is needed: {', '.join(Losses.model_fields)}")
        return losses
