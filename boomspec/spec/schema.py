"""Query a pydantic model's JSON Schema for allowed keys and values.

A schema is a dict as pydantic writes it, with its references resolved. An empty one says that nothing is known.
"""

from functools import cache
from typing import Any

from pydantic import BaseModel

from boomspec.spec.yaml_reader import shown

Schema = dict[str, Any]
TYPES = {
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "string": "text",
    "array": "a list",
    "object": "a mapping",
}


@cache
def schema_of(model: type[BaseModel]) -> Schema:
    """The JSON Schema of a model. A field without a description of its own has none."""
    whole = model.model_json_schema()
    definitions = whole.pop("$defs", {})

    def resolved(schema: Any) -> Any:
        if isinstance(schema, list):
            return [resolved(item) for item in schema]
        if not isinstance(schema, dict):
            return schema
        if "$ref" in schema:
            definition = definitions[schema["$ref"].rpartition("/")[2]]
            schema = {**definition, "description": None, **{k: v for k, v in schema.items() if k != "$ref"}}
        return {key: resolved(value) for key, value in schema.items()}

    found: Schema = resolved(whole)
    return found


def members(schema: Schema) -> list[Schema]:
    """The members of a union and of unions inside of it, null left out; of anything else, itself."""
    choice = schema.get("anyOf") or schema.get("oneOf")
    if not choice or _is_quantity(schema):
        return [schema]
    return [found for member in choice if member.get("type") != "null" for found in members(member)]


def mappings(schemas: list[Schema]) -> list[Schema]:
    return [schema for schema in schemas if "properties" in schema]


def inside(schemas: list[Schema], item: str | int) -> list[Schema]:
    """What the value of a key, or the item of a list, may be."""
    found = []
    for schema in schemas:
        if isinstance(item, int):
            fixed = schema.get("prefixItems", ())
            inner = fixed[item] if item < len(fixed) else schema.get("items")
        else:
            inner = schema.get("properties", {}).get(item) or schema.get("additionalProperties")
        found += members(inner) if isinstance(inner, dict) else []
    return found


def narrowed(schemas: list[Schema], label: object, value: object) -> list[Schema]:
    """The members of a union that pydantic labels so: by name, by the value of a key, or by the type of the value."""
    named = [s for s in schemas if s.get("title") == label or label in literals(list(s.get("properties", {}).values()))]
    kind = "object" if isinstance(value, dict) else "array" if isinstance(value, tuple) else None
    return named or [schema for schema in schemas if kind is None or schema.get("type") == kind]


def literals(schemas: list[Schema]) -> list[Any]:
    return [value for s in schemas for value in ([s["const"]] if "const" in s else s.get("enum", ()))]


def described(schemas: list[Schema]) -> str:
    """Say what a value may be: "a whole number, a list or a mapping"."""
    parts: list[str] = []
    for schema in schemas or [{}]:
        if _is_quantity(schema):
            text = schema["description"].rstrip(".")
            parts.append(f"{text[0].lower()}{text[1:]} such as {either([str(one) for one in schema['examples'][:3]])}")
        else:
            known = TYPES.get(schema.get("type", ""), "another value")
            parts += [shown(value) for value in literals([schema])] or [known]
    return either(parts)


def either(parts: list[str]) -> str:
    """Return "a", "a or b", "a, b or c"; each part once."""
    *first, last = dict.fromkeys(parts)
    return f"{', '.join(first)} or {last}" if first else last


def _is_quantity(schema: Schema) -> bool:
    """Whether it is one of the quantities of `boomspec.core.types`, which are numbers or texts."""
    return [member.get("type") for member in schema.get("anyOf", ())] == ["number", "string"]
