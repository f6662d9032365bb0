"""The spec language, version 1: the top level of a spec file, and how one is read.

The sections are in `boomspec.language`. What a spec MEANS is `boomspec.resolve`.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from boomspec.errors import Problem, SpecError
from boomspec.fields import AlsoText, Strict
from boomspec.language import (
    BaselineItem,
    DataSpec,
    DistillSpec,
    EvaluateSpec,
    ExecutionSpec,
    InterpolateSpec,
    StudentSpec,
    TeacherSpec,
    baseline_item,
)
from boomspec.source import Document, read_source
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
    data: DataSpec
    distill: DistillSpec
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

    def baseline(self, kind: Literal["naive_pruning", "random_init"]) -> Any:
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
