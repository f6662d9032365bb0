"""The section of the spec language that says where and how fast. Nothing in it is part of a result's identity."""

from typing import Annotated

from pydantic import Field, field_validator

from boomspec.fields import Number, Strict
from boomspec.validation import FieldError


class Resources(Strict):
    """What one task gets."""

    cpus: Annotated[Number, Field(gt=0, description="CPU cores, and threads of the numerical libraries.")] = 1
    gpus: Annotated[Number, Field(ge=0, le=1, description="GPUs; a share below 1 lets tasks share one.")] = 0


class TrainingResources(Resources):
    micro_batch: Annotated[int, Field(ge=1, description="Sequences of one forward pass.")] = 8
    checkpoint_seconds: Annotated[Number, Field(gt=0, description="Longest time between checkpoints.")] = 60


class EvaluateResources(Resources):
    batch_size: Annotated[int, Field(ge=1, description="Sequences of one forward pass.")] = 8


class ExecutionSpec(Strict):
    """Where and how fast. Nothing here is part of a result's identity."""

    store: Annotated[str | None, Field(min_length=1, description="Folder of artifacts, relative to the spec.")] = None
    cpus: Annotated[int | None, Field(ge=1, description="Cores that a local run uses; default: all.")] = None
    retries: Annotated[int, Field(ge=0, le=100, description="New attempts when a worker is lost.")] = 2
    tokenize: Resources = Resources()
    pretrain: TrainingResources = TrainingResources()
    distill: TrainingResources = TrainingResources()
    interpolate: Resources = Resources()
    evaluate: EvaluateResources = EvaluateResources()

    @field_validator("store")
    @classmethod
    def _a_folder(cls, store: str | None) -> str | None:
        if store is not None and "://" in store:
            raise FieldError(f"only folders are supported, not '{store}'", hint="give a path")
        return store
