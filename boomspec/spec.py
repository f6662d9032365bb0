"""The spec language, version 1: the top level of a spec file, and how one is read.

The sections are in `boomspec.language`. What a spec MEANS is `boomspec.resolve`.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from boomspec.baselines import BaselineItem, baseline_item
from boomspec.errors import Problem, SpecError
from boomspec.execution import ExecutionSpec
from boomspec.fields import AlsoText, Strict
from boomspec.language import (
    DataSpec,
    EvaluateSpec,
    InterpolateSpec,
    StudentSpec,
    TeacherSpec,
)
from boomspec.searches import OrderSearch
from boomspec.source import Document, read_source
from boomspec.training import DistillSpec
from boomspec.validation import FieldError, validate
from boomspec.yaml_tree import dotted

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Spec(Strict):
    """A boomerang distillation experiment."""

    boomspec: Annotated[Literal[1], Field(description="Version of the spec language.")]
    name: Annotated[str, Field(description="Name of the experiment: letters, digits, dots, dashes.")]
    seed: Annotated[int, Field(ge=0, le=2**32 - 1, description="Of weights, data order and evaluation.")] = 0
    teacher: TeacherSpec
    student: StudentSpec
    data: DataSpec | None = None
    distill: DistillSpec | None = None
    interpolate: InterpolateSpec = InterpolateSpec()
    evaluate: EvaluateSpec | None = None
    baselines: Annotated[
        tuple[Annotated[BaselineItem, BeforeValidator(baseline_item), AlsoText(*BaselineItem.model_fields)], ...],
        Field(description="Controls, as names or {kind: settings}.", examples=[["naive_pruning", "random_init"]]),
    ] = ()
    execution: ExecutionSpec = ExecutionSpec()

    @field_validator("name")
    @classmethod
    def _plain_name(cls, name: str) -> str:
        if not _NAME.fullmatch(name):
            raise FieldError(f"'{name}' is not a plain name", hint="use letters, digits, dots, dashes, underscores")
        return name

    @field_validator("baselines")
    @classmethod
    def _each_once(cls, items: tuple[BaselineItem, ...]) -> tuple[BaselineItem, ...]:
        kinds = [kind for item in items for kind in item.model_fields_set]
        if twice := sorted({kind for kind in kinds if kinds.count(kind) > 1}):
            raise FieldError(f"'{twice[0]}' is listed twice")
        return items

    @model_validator(mode="after")
    def _sections_fit(self) -> Self:
        if self.student.model is None and self.distill is None:
            raise FieldError("missing 'distill'", hint="or name a student that exists: student: {model: ...}")
        if self.student.model is not None and self.distill is not None:
            raise FieldError("a student that exists is not distilled: remove this, or student.model", at=("distill",))
        for i, item in enumerate(self.baselines):
            if self.distill is None and item.is_trained:
                raise FieldError("needs a `distill` section: it is trained", at=("baselines", i))
        if self.teacher.pretrain is None and "pretrain" in self.execution.model_fields_set:
            raise FieldError("nothing is pretrained here", at=("execution", "pretrain"))
        if self.data is None and (reason := self._reads_text()):
            raise FieldError("missing 'data'", hint=f"{reason} needs text")
        return self

    def _reads_text(self) -> str | None:
        """What in this spec needs text, if anything does."""
        if self.distill is not None:
            return "distill"
        if self.teacher.pretrain is not None:
            return "teacher.pretrain"
        if self.evaluate is not None and self.evaluate.held_out is not None:
            return "evaluate.held_out"
        if isinstance(self.interpolate.order, OrderSearch):
            return "interpolate.order"
        return "baselines" if any(item.reads_text for item in self.baselines) else None

    def baseline(self, kind: str) -> Any:
        """The settings of one baseline, or None where it is not asked for."""
        return next((getattr(item, kind) for item in self.baselines if getattr(item, kind) is not None), None)


@dataclass(frozen=True)
class SpecFile:
    """A validated spec and the document that it came from, so that later checks can point into the file."""

    spec: Spec
    document: Document

    @property
    def folder(self) -> Path:
        """Relative paths in a spec start here."""
        return Path(self.document.file).absolute().parent

    def problem(self, path: tuple[str | int, ...], message: str, hint: str | None = None) -> Problem:
        line, column = self.document.place(path)
        return Problem(line, column, dotted(path), _printable(message), _printable(hint) if hint else None)

    def error(self, *problems: Problem) -> SpecError:
        return SpecError(self.document.file, list(problems), self.document.text)


def _printable(text: str) -> str:
    """The text of a spec may hold anything; a terminal is shown escapes for what would move its cursor."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def load_spec(path: Path) -> SpecFile:
    """Read and validate a spec file. Raises SpecError with every problem, or BoomspecError if unreadable."""
    document = read_source(path)
    return SpecFile(validate(Spec, document), document)


def json_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a spec file, with descriptions and examples for editors."""
    schema = Spec.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
