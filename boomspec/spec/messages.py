"""Says in terms of the spec what is wrong with one value, from one error of pydantic."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from boomspec.core.errors import did_you_mean
from boomspec.spec.schema import TYPES, Schema, described, literals, mappings
from boomspec.spec.yaml_reader import Location, plain_or_none, shown

# The starts of pydantic's error types for a value of the wrong type, and what was expected.
_EXPECTED = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "list": "a list",
    "tuple": "a list",
    "dict": "a mapping",
    "model": "a mapping",
    "none": "null",
}
_WRONG_TYPE = re.compile(r"([a-z]+)_(type|sub_type|attributes_type|unicode|parsing|parsing_size|from_float|required)")
_YES, _NO = {"yes", "y", "on", "true", "1"}, {"no", "n", "off", "false", "0"}


@dataclass(frozen=True)
class Failure:
    """One error of pydantic. `loc`: its location, relative to the value that the walk has reached."""

    loc: Location
    details: Any  # pydantic_core.ErrorDetails

    @property
    def type(self) -> str:
        return str(self.details["type"])

    @property
    def context(self) -> dict[str, Any]:
        return self.details.get("ctx") or {}

    @property
    def cause(self) -> Any:
        """The exception that a validator raised, if one did."""
        return self.context.get("error")

    @property
    def expected(self) -> str | None:
        """What was expected, where the value has the wrong type."""
        match = _WRONG_TYPE.fullmatch(self.type)
        return _EXPECTED.get(match[1]) if match else None

    @property
    def is_wrong_type(self) -> bool:
        """Whether the value is nothing for this member of a union, rather than a wrong value for it."""
        wrong = self.expected or self.type == "literal_error" or str(self.cause).startswith("expected ")
        return not self.loc and bool(wrong)


def message_and_hint(failure: Failure, schemas: list[Schema], value: Any) -> tuple[str, str | None]:
    """Say what is wrong with `value`, which should be as one of `schemas`, and what would be right."""
    if expected := failure.expected:
        return f"expected {expected}, not {shown(value)}", _hint(expected, schemas, value)
    if failure.type == "literal_error":
        hint = choices(value, literals(schemas)) or f"allowed: {failure.context.get('expected')}"
        return f"{shown(value)} is not allowed", hint
    if failure.type in ("union_tag_invalid", "union_tag_not_found"):
        return wrong_type(schemas, value)
    if failure.type == "string_pattern_mismatch":
        hint = f"it must match the pattern {failure.context['pattern']}"
        return f"{shown(value)} does not have the right form", hint
    if failure.cause is not None:
        text = str(failure.cause) or f"{shown(value)} is not allowed"
        # A parser of a quantity leaves out a value that is neither a number nor text.
        if text.startswith("expected ") and (value is None or isinstance(value, bool | tuple | dict)):
            text += f", not {shown(value)}"
        return text, getattr(failure.cause, "hint", None)
    return _of_pydantic(str(failure.details["msg"]), value), None


def _of_pydantic(text: str, value: Any) -> str:
    """Turn "Input should be at least 2" into "must be at least 2, not 1"."""
    text = text.replace("greater than or equal to", "at least").replace("less than or equal to", "at most")
    if limit := re.fullmatch(r"Input should be ((?:greater|less|at least|at most|a multiple).*)", text):
        return f"must be {limit[1]}, not {shown(value)}"
    if length := re.fullmatch(r"\w+ should have (at (?:least|most) \d+ \w+)(?: after validation)?(, not \d+)?", text):
        actual = f", not {len(value)}" if isinstance(value, str) else length[2] or ""
        return f"must have {length[1]}{actual}"
    if text.startswith("Input should be"):
        return f"expected{text.removeprefix('Input should be')}, not {shown(value)}"
    return text


def wrong_type(schemas: list[Schema], value: Any) -> tuple[str, str | None]:
    """Say that a value fits no member of a union, and what the members are."""
    close = did_you_mean(value, [str(choice) for choice in literals(schemas)]) if isinstance(value, str) else None
    types = [(TYPES.get(schema.get("type", "")), schema) for schema in schemas]
    hints = [_hint(name, [schema], value) for name, schema in types if name in ("true or false", "a mapping")]
    return f"expected {described(schemas)}, not {shown(value)}", joined([close, *hints])


def choices(value: object, allowed: Iterable[object]) -> str | None:
    """Return the hint "did you mean 'x'? allowed: x, y", or None where nothing is allowed."""
    names = [choice if isinstance(choice, str) else shown(choice) for choice in allowed]
    return joined([did_you_mean(value, names), f"allowed: {', '.join(names)}"]) if names else None


def joined(hints: Iterable[str | None]) -> str | None:
    """Join hints into one: a question ends by itself, the others are separated by semicolons."""
    return "; ".join(filter(None, hints)).replace("?; ", "? ") or None


def _hint(expected: str, schemas: list[Schema], value: Any) -> str | None:
    number = isinstance(value, int | float)
    if expected == "true or false":
        text = str(value).lower()
        return "write true" if text in _YES else "write false" if text in _NO else "write true or false"
    if expected == "text" and number:
        return "put it in quotes"
    if expected == "a list" and (number or isinstance(value, str)):
        return f"write [{shown(value)}]" if len(str(value)) <= 40 else "write each item after a '- '"
    if expected == "a mapping" and len(found := mappings(schemas)) == 1:
        keys = ", ".join(found[0]["properties"])
        return f"keys of the mapping: {keys}" if keys else "write {}"
    if expected == "a whole number" and isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return f"write {int(value)}"
    if "number" in expected and isinstance(value, str) and isinstance(plain_or_none(value), int | float):
        return "remove the quotes"
    return None
