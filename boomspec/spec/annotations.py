"""Reads from the annotation of a field what it takes: the annotations of its entries, the values and keys allowed.

An annotation is one as pydantic understands it: `int`, `Literal["a"]`, a model, `tuple[int, ...]`, `Annotated[...]`, a
union of these. None as an annotation means that nothing is known.
"""

from __future__ import annotations

import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, Tag, WithJsonSchema
from pydantic.fields import FieldInfo

from boomspec.spec.yaml_reader import shown

_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}


def bare(annotation: Any) -> Any:
    """The annotation without what `Annotated` adds."""
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def members(annotation: Any) -> list[Any]:
    """The members of a union, null left out; of anything else, itself. pydantic labels only two or more."""
    if get_origin(bare(annotation)) not in (Union, types.UnionType):
        return [annotation]
    found = [member for member in get_args(bare(annotation)) if member is not type(None)]
    return members(found[0]) if len(found) == 1 else found


def models_of(annotation: Any) -> list[type[BaseModel]]:
    """The models whose keys may be written. A quantity is none of them: it is written as text."""
    found = [bare(member) for member in members(annotation) if _quantity_schema(member) is None]
    return [member for member in found if isinstance(member, type) and issubclass(member, BaseModel)]


def keys_of(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """The keys that may be written for a model, with their fields."""
    return {field.alias or name: field for name, field in model.model_fields.items()}


def annotation_of(field: FieldInfo) -> Any:
    return Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation


def inside(annotation: Any, item: str | int) -> Any:
    """The annotation of one entry of a mapping or a list."""
    base = bare(annotation)
    for model in models_of(annotation)[:1]:
        field = keys_of(model).get(str(item))
        return None if field is None else annotation_of(field)
    origin, arguments = get_origin(base), get_args(base)
    if origin is dict:
        return arguments[1]
    if origin is tuple and arguments[-1] is not Ellipsis:
        return arguments[item] if isinstance(item, int) and item < len(arguments) else None
    return arguments[0] if isinstance(origin, type) and arguments else None


def literals(annotation: Any) -> list[Any]:
    """The values that an annotation spells out, over all members of a union."""
    bases = [bare(member) for member in members(annotation)]
    return [value for base in bases if get_origin(base) is Literal for value in get_args(base)]


def is_tagged(annotation: Any, tag: str) -> bool:
    """Whether a member of a discriminated union has this tag: by `Tag`, or as the literal of one of its fields."""
    if tags := [extra.tag for extra in _extras(annotation) if isinstance(extra, Tag)]:
        return tag in tags
    fields = [field for model in models_of(annotation) for field in model.model_fields.values()]
    return any(tag in literals(annotation_of(field)) for field in fields)


def either(parts: list[str]) -> str:
    """Return "a", "a or b", "a, b or c"; each part once."""
    *first, last = dict.fromkeys(parts)
    return f"{', '.join(first)} or {last}" if first else last


def described(annotation: Any) -> str:
    """Say what an annotation takes: "a whole number, a list or a mapping"."""
    return either([part for member in members(annotation) for part in _described(member)])


def _extras(annotation: Any) -> tuple[Any, ...]:
    """What `Annotated` adds to an annotation."""
    return get_args(annotation)[1:] if get_origin(annotation) is Annotated else ()


def _quantity_schema(annotation: Any) -> dict[str, Any] | None:
    """The JSON Schema of a quantity of `boomspec.core.types`, which its parser turns into another type."""
    schemas = [extra.json_schema or {} for extra in _extras(annotation) if isinstance(extra, WithJsonSchema)]
    return schemas[0] if schemas and "description" in schemas[0] else None


def _described(annotation: Any) -> list[str]:
    base = bare(annotation)
    origin = get_origin(base) or base
    if schema := _quantity_schema(annotation):
        text, examples = str(schema["description"]).rstrip("."), [str(one) for one in schema.get("examples", [])]
        return [f"{text[0].lower()}{text[1:]}{f' such as {either(examples[:3])}' if examples else ''}"]
    if values := literals(annotation):
        return [shown(value) for value in values]
    if models_of(annotation) or origin is dict:
        return ["a mapping"]
    return ["a list" if origin is tuple else _NAMES.get(base, "another value")]
