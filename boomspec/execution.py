"""The section of the spec language that says where and how fast. Nothing in it is part of a result's identity."""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from boomspec.costs.devices import DEVICES, others
from boomspec.fields import Number, Strict
from boomspec.validation import FieldError


class Resources(Strict):
    """What one task gets."""

    cpus: Annotated[Number, Field(gt=0, description="CPU cores, and threads of the numerical libraries.")] = 1
    gpus: Annotated[Number, Field(ge=0, le=1, description="GPUs; a share below 1 lets tasks share one.")] = 0


class TrainingResources(Resources):
    """What a training gets."""

    micro_batch: Annotated[int, Field(ge=1, description="Sequences of one forward pass.")] = 8
    checkpoint_seconds: Annotated[Number, Field(gt=0, description="Longest time between checkpoints.")] = 60
    workers: Annotated[
        int,
        Field(ge=1, le=4096, description="Processes that train together; each gets `cpus` and `gpus`.", examples=[4]),
    ] = 1
    min_workers: Annotated[
        int | None,
        Field(ge=1, description="So few may go on when workers or machines are lost; default: 1.", examples=[2]),
    ] = None
    parallel: Annotated[
        Literal["ddp", "fsdp"],
        Field(
            description="ddp: each worker holds all of the student; fsdp: its parameters, gradients and moments are cut "
            "over the workers.",
            examples=["fsdp"],
        ),
    ] = "ddp"
    activation_checkpointing: Annotated[
        bool,
        Field(description="Compute activations again in the backward pass: less memory, a third more time."),
    ] = False
    compile: Annotated[
        bool, Field(description="Compile the layers with torch.compile: slow to start, then faster on GPUs.")
    ] = False

    @model_validator(mode="after")
    def _workers_agree(self) -> Self:
        for name in ("parallel", "min_workers", "teacher"):
            if self.workers == 1 and name in self.model_fields_set:
                raise FieldError(f"one worker has no {name}", at=(name,), hint="set `workers`, which is 1 by default")
        if self.min_workers is not None and self.min_workers > self.workers:
            raise FieldError(f"must not be more than workers ({self.workers})", at=("min_workers",))
        if self.workers > 1 and 0 < self.gpus < 1:
            raise FieldError("workers that train together need a whole GPU each", at=("gpus",), hint="0 or 1")
        return self


class DistillResources(TrainingResources):
    """What each distillation gets."""

    teacher: Annotated[
        Literal["replicated", "sharded"],
        Field(
            description="sharded: the teacher's layers are cut over the workers; replicated: each worker has them all.",
            examples=["sharded"],
        ),
    ] = "replicated"


class EvaluateResources(Resources):
    """What an evaluation gets."""

    batch_size: Annotated[int, Field(ge=1, description="Sequences of one forward pass.")] = 8


class ExecutionSpec(Strict):
    """Where and how fast. Nothing here is part of a result's identity."""

    store: Annotated[
        str | None,
        Field(
            min_length=1,
            description="Folder of artifacts, relative to the spec. Default: ./boomspec-store where a run is started.",
            examples=["../boomspec-store", "/shared/boomspec-store"],
        ),
    ] = None
    cpus: Annotated[int | None, Field(ge=1, description="Cores that a local run uses; default: all.", examples=[8])] = (
        None
    )
    retries: Annotated[int, Field(ge=0, le=100, description="New attempts when a worker is lost.")] = 2
    device: Annotated[
        str | None,
        Field(
            description="Kind of GPU that `plan` reckons with, for times and for what fits: a name of its table.",
            examples=["h100", "a100-80"],
        ),
    ] = None
    tokenize: Annotated[Resources, Field(description="For making tokens of the text.")] = Resources()
    pretrain: Annotated[TrainingResources, Field(description="For training a teacher.")] = TrainingResources()
    distill: Annotated[DistillResources, Field(description="For each distillation.")] = DistillResources()
    interpolate: Annotated[Resources, Field(description="For building one size, or a baseline.")] = Resources()
    evaluate: Annotated[EvaluateResources, Field(description="For measuring one model in one way.")] = (
        EvaluateResources()
    )

    @field_validator("device")
    @classmethod
    def _of_the_table(cls, device: str | None) -> str | None:
        if device is not None and device not in DEVICES:
            raise FieldError(f"no device '{device}' is known", hint=others(device))
        return device

    @field_validator("store")
    @classmethod
    def _a_folder(cls, store: str | None) -> str | None:
        if store is not None and "://" in store:
            raise FieldError(f"only folders are supported, not '{store}'", hint="give a path")
        return store
