"""Reads from annotations what a field takes: the kind of each entry, the values and keys that are allowed.

A *kind* is an annotation as pydantic understands it: `int`, `Literal["a"]`, a model class, `list[int]`,
`Annotated[...]`, a union of such. None as a kind means that nothing is known.
"""

from __future__ import annotations

import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, Tag, WithJsonSchema
from pydantic.fields import FieldInfo

from boomspec.spec.scalars import shown

_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}


def bare(kind: Any) -> Any:
    """The kind without what `Annotated` or a type alias adds."""
    while True:
        if get_origin(kind) is Annotated:
            kind = get_args(kind)[0]
        elif hasattr(kind, "__value__"):
            kind = kind.__value__
        else:
            return kind


def members(kind: Any) -> list[Any]:
    """The members of a union, null left out; of any other kind, itself. pydantic labels only two or more."""
    base = bare(kind)
    if get_origin(base) not in (Union, types.UnionType):
        return [kind]
    found = [member for member in get_args(base) if member is not type(None)]
    return members(found[0]) if len(found) == 1 else found


def is_labelled(kind: Any, label: str) -> bool:
    """Whether `label` is what pydantic calls this member of a union: its tag, its class or its discriminator."""
    for extra in _extras(kind):
        if isinstance(extra, Tag):
            return extra.tag == label
    model = model_of(kind)
    if model is None:
        return False
    return label == model.__name__ or any(label in literals(kind_of(field)) for field in model.model_fields.values())


def model_of(kind: Any) -> type[BaseModel] | None:
    """The model class whose keys may be written, if the kind is one. A quantity is not: it is written as text."""
    base = bare(kind) if _quantity_schema(kind) is None else None
    return base if isinstance(base, type) and issubclass(base, BaseModel) else None


def keys_of(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """The keys that may be written for a model, with their fields."""
    return {field.alias or name: field for name, field in model.model_fields.items()}


def kind_of(field: FieldInfo) -> Any:
    return Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation


def inside(kind: Any, item: str | int) -> Any:
    """The kind of one entry of a kind that holds others."""
    base, model = bare(kind), model_of(kind)
    if model is not None:
        field = keys_of(model).get(str(item))
        return kind_of(field) if field is not None else None
    origin, arguments = get_origin(base), get_args(base)
    if not isinstance(origin, type) or not arguments:
        return None
    if issubclass(origin, dict):
        return arguments[1]
    if issubclass(origin, tuple) and arguments[-1] is not Ellipsis:
        return arguments[item] if isinstance(item, int) and item < len(arguments) else None
    return arguments[0]


def key_kind(kind: Any) -> Any:
    """The kind of the keys of a dict."""
    arguments = get_args(bare(kind))
    return arguments[0] if len(arguments) == 2 else None


def length_of(kind: Any) -> int:
    """How many items a tuple of fixed length has."""
    return len(get_args(bare(kind)))


def literals(kind: Any) -> list[Any]:
    """The values that a kind spells out, over all members of a union."""
    bases = [bare(member) for member in members(kind)]
    return [value for base in bases if get_origin(base) is Literal for value in get_args(base)]


def either(parts: list[str]) -> str:
    """Return "a", "a or b", "a, b or c"; each part once."""
    parts = list(dict.fromkeys(parts))
    return " or ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def described(kind: Any) -> str:
    """Say what a kind takes: "a whole number, a list or a mapping"."""
    return either([part for member in members(kind) for part in _described(member)])


def _extras(kind: Any) -> tuple[Any, ...]:
    """What `Annotated` adds to a kind."""
    return get_args(kind)[1:] if get_origin(kind) is Annotated else ()


def _quantity_schema(kind: Any) -> dict[str, Any] | None:
    """The JSON Schema of a quantity of `boomspec.core.types`, which its parser turns into another type."""
    schemas = [extra.json_schema for extra in _extras(kind) if isinstance(extra, WithJsonSchema)]
    return schemas[0] if schemas and schemas[0] and "description" in schemas[0] else None


def _described(kind: Any) -> list[str]:
    base = bare(kind)
    origin = get_origin(base) or base
    if schema := _quantity_schema(kind):
        text, examples = str(schema["description"]).rstrip("."), [str(one) for one in schema.get("examples", [])]
        return [f"{text[0].lower()}{text[1:]}{f' such as {either(examples[:3])}' if examples else ''}"]
    if values := literals(kind):
        return [shown(value) for value in values]
    if base in _NAMES:
        return [_NAMES[base]]
    if model_of(kind) is not None or (isinstance(origin, type) and issubclass(origin, dict)):
        return ["a mapping"]
    if isinstance(origin, type) and issubclass(origin, tuple | list | set | frozenset):
        return ["a list"]
    return [str(getattr(base, "__name__", "another value")).lower()]
