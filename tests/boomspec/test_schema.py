"""The JSON Schema, by which an editor completes and explains every field."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from boomspec.core.errors import SpecError
from boomspec.spec.document import read_document
from boomspec.spec.json_schema import json_schema

ROOT = Path(__file__).parents[2]
SCHEMA = json_schema()
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
SPECS = sorted([*(ROOT / "specs").glob("*.yaml"), *(ROOT / "boomspec" / "templates").glob("*.yaml")])
BROKEN = ROOT / "tests" / "golden" / "broken"
# What is wrong in these takes knowing a teacher's layers, counting across fields, or files.
BEYOND = {
    "layer-out-of-range", "loss-pairs-layers", "losses-attention-on-top", "losses-on-attention-alone",
    "nothing-held-out", "order-misses-a-block",
    "size-below-the-student",
    "two-teachers", "unknown-task", "no-such-file",
    "data-set-without-end", "warmup-longer-than-training", "variable-not-set",
    "extends-in-a-circle", "extends-missing-file", "extends-removes",
    "sweep-of-layers", "sweep-too-large", "variant-of-layers", "variant-sets-what-is-swept", "weight-course",
    "balance-of-a-signed-loss", "balance-of-equal-states", "rkd-of-nothing", "weight-course-of-a-baseline",
    "weight-course-of-a-polish",
}  # fmt: skip


def sections() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every mapping that the schema describes."""
    for name, definition in SCHEMA["$defs"].items():
        if "properties" in definition:
            yield name, definition


def fields() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, section in sections():
        for field, entry in section["properties"].items():
            yield f"{name}.{field}", entry


def inside(entry: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A field's schema and the alternatives in it, those of another field that it refers to included."""
    yield entry
    if "/properties/" in entry.get("$ref", ""):
        _, section, _, field = entry["$ref"].removeprefix("#/").split("/")
        yield from inside(SCHEMA["$defs"][section]["properties"][field])
    for choice in [*entry.get("anyOf", ()), *entry.get("oneOf", ()), *filter(None, [entry.get("items")])]:
        yield from inside(choice)


def serves_as_example(entry: dict[str, Any]) -> bool:
    """Whether an editor has something to propose: an example, the values that there are, or a default."""
    return any(
        {"examples", "enum", "const"} & part.keys() or part.get("type") == "boolean" or part.get("default") is not None
        for part in inside(entry)
    )


def plain(value: Any) -> Any:
    """What was read from a spec, as JSON has it."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, tuple) else value


def test_it_is_a_json_schema():
    VALIDATOR.check_schema(SCHEMA)


def test_every_section_has_a_description():
    assert [name for name, section in sections() if not section.get("description")] == []


def test_every_field_has_a_description_of_its_own():
    assert [name for name, entry in fields() if not entry.get("description")] == []


def test_every_field_has_an_example_its_values_or_a_default():
    # A partial section, where every field may be left out, shows no default: it is the base that decides.
    whole = [(name, entry) for name, entry in fields() if not name.startswith(("Partial", "Variant", "Extending"))]
    assert len(whole) > 100
    assert [name for name, entry in whole if not serves_as_example(entry)] == []


def test_every_example_and_every_default_is_one_that_the_schema_allows():
    wrong = []
    for name, entry in fields():
        validator = VALIDATOR.evolve(schema={**entry, "$defs": SCHEMA["$defs"]})
        shown = [*entry.get("examples", ()), *([entry["default"]] if "default" in entry else [])]
        wrong += [(name, example) for example in shown if not validator.is_valid(example)]
    assert wrong == []


@pytest.mark.parametrize("path", SPECS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_it_accepts_every_spec_and_every_template(path):
    VALIDATOR.validate(plain(read_document(path).data))


@pytest.mark.parametrize("path", sorted(BROKEN.glob("*.yaml")), ids=lambda path: path.stem)
def test_it_rejects_the_broken_specs_that_a_schema_can_reject(path):
    try:
        document = read_document(path)
    except SpecError:
        return  # it is no YAML: nothing is left for a schema
    if document.problems:
        return  # it is YAML that the language does not allow
    assert VALIDATOR.is_valid(plain(document.data)) == (path.stem in BEYOND)
