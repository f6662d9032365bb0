"""The JSON Schema of a spec file, from which editors complete and explain every field.

A variant, and a file that extends another one, may leave out anything and remove anything (null). For them, every
section has a *partial* form, in which no field is required and each may be null.
"""

import re
from collections.abc import Iterator
from typing import Any

from boomspec.core.graph import NAME
from boomspec.spec.experiments import ANCHORS
from boomspec.spec.schema import Schema
from boomspec.spec.spec_file import Spec
from boomspec.spec.sweep import OF_THE_FILE, OWN, REFUSED

Schemas = dict[str, Schema]  # by name, or by reference
_DEFS = "#/$defs/"


def json_schema() -> Schema:
    """JSON Schema (draft 2020-12) of a spec file, with descriptions and examples for editors."""
    whole = Spec.model_json_schema()
    definitions: Schemas = whole.pop("$defs")
    partial = {f"Partial{name}": _partial(schema) for name, schema in definitions.items() if "properties" in schema}
    experiment = {**_partial(whole), "description": "What differs from the file's own experiment; null removes."}
    experiment["properties"] = {k: v for k, v in experiment["properties"].items() if k not in (*OF_THE_FILE, *OWN)}
    filled = {"type": "object", "minProperties": 1}
    names = {"pattern": f"^{NAME}$", "not": {"const": "base"}}
    experiments = {**filled, "propertyNames": names, "additionalProperties": {"$ref": f"{_DEFS}Variant"}}
    axes = dict(_axes({f"{_DEFS}Spec": whole}, definitions))
    about = "Fields and the values that each of them takes; every combination is an experiment."
    grid = {"description": about, **filled, "properties": axes, "additionalProperties": False}
    forms = {"type": "string"}, {"$ref": f"{_DEFS}Variants"}, {"$ref": f"{_DEFS}Sweep"}
    own = {name: {**_described(whole["properties"][name]), **form} for name, form in zip(OWN, forms, strict=True)}
    extending = _partial(whole)
    for schema in (whole, extending):
        schema["properties"] |= own
        schema["patternProperties"] = {f"^{ANCHORS}": {"description": "Anything: for anchors (&name) alone."}}
    composing = {"Spec": whole, "Extending": extending, "Variant": experiment, "Variants": experiments, "Sweep": grid}
    whole_schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "boomspec",
        "description": whole["description"],
        "type": "object",
        "if": {"required": ["extends"]},
        "then": {"$ref": f"{_DEFS}Extending"},
        "else": {"$ref": f"{_DEFS}Spec"},
        "$defs": {**definitions, **partial, **composing},
    }
    return _titled(whole_schema)


def _titled(schema: Schema) -> Schema:
    """With titles for people: editors show them. A field's own name needs none, and a mapping's is in words."""

    def titled(part: Any, *, fields: bool = False) -> Any:
        if isinstance(part, list):
            return [titled(item) for item in part]
        if not isinstance(part, dict):
            return part
        found = {key: titled(value, fields=key in ("properties", "$defs")) for key, value in part.items()}
        if fields or not isinstance(name := found.get("title"), str):  # a field may be called "title"
            return found
        if "properties" in found:
            return found | {"title": _words(name)}
        return {key: value for key, value in found.items() if key != "title"}

    return {**titled(schema), "title": schema["title"]}


def _words(name: str) -> str:
    """ "HeldOutSpec" as "held out". Names such as LaCo and MiniLMv2 stay as they are."""
    name = name.removesuffix("Spec") or name
    return re.sub("(?<!^)(?=[A-Z])", " ", name).lower() if re.fullmatch("([A-Z][a-z]{2,})+", name) else name


def _described(schema: Schema) -> Schema:
    return {key: schema[key] for key in ("title", "description", "examples") if key in schema}


def _partial(schema: Schema) -> Schema:
    """A mapping's schema with no field required, and each one removable."""
    properties = {}
    for name, field in schema["properties"].items():
        inner = _merging({key: value for key, value in field.items() if key != "default"})
        properties[name] = {**_described(field), "anyOf": [inner, {"type": "null"}]}
    return {k: v for k, v in schema.items() if k not in ("required", "properties")} | {"properties": properties}


def _merging(schema: Schema) -> Schema:
    """What an override may give for a value of this schema: a mapping in part, everything else as a whole."""
    if "$ref" in schema:
        return {**schema, "$ref": schema["$ref"].replace(_DEFS, f"{_DEFS}Partial")}
    choices = [_merging(choice) for key in ("anyOf", "oneOf") for choice in schema.get(key, ())]
    kept = {key: value for key, value in schema.items() if key not in ("anyOf", "oneOf")}
    return {**kept, "anyOf": choices} if choices else kept


def _axes(holders: Schemas, definitions: Schemas, above: tuple[str, ...] = ()) -> Iterator[tuple[str, Schema]]:
    """The axis of every field that can be swept, by its dotted path: a list of what the field takes, or of null.

    `holders`: the mappings that may be at the path `above`, by their references.
    """
    for name in dict.fromkeys(name for holder in holders.values() for name in holder["properties"]):
        if not above and name in REFUSED:
            continue
        fields = {
            f"{place}/properties/{name}": holder["properties"][name]
            for place, holder in holders.items()
            if name in holder["properties"]
        }
        about = _described(next(iter(fields.values())))
        if "examples" in about:
            about["examples"] = [about["examples"]]  # each example is one value, and an axis is a list of them
        items = {"anyOf": [*({"$ref": place} for place in fields), {"type": "null"}]}
        path = (*above, name)
        yield ".".join(path), {**about, "type": "array", "minItems": 1, "uniqueItems": True, "items": items}
        below = dict(found for schema in fields.values() for found in _mappings(schema, definitions))
        yield from _axes(below, definitions, path)


def _mappings(schema: Schema, definitions: Schemas) -> Iterator[tuple[str, Schema]]:
    if "$ref" in schema:
        definition = definitions[schema["$ref"].removeprefix(_DEFS)]
        if "properties" in definition:
            yield schema["$ref"], definition
    for key in ("anyOf", "oneOf"):
        for choice in schema.get(key, ()):
            yield from _mappings(choice, definitions)
