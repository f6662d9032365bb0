"""Says in the words of the spec language what pydantic found wrong with one value."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from boomspec.core.errors import did_you_mean
from boomspec.spec.kinds import bare, described, keys_of, literals, members, model_of
from boomspec.spec.scalars import plain_scalar, shown
from boomspec.spec.yaml_reader import Location

_WHOLE_NUMBER, _LIST, _MAPPING = "a whole number", "a list", "a mapping"

# Errors that say: this is not the kind of value that belongs here.
_KINDS = {
    **dict.fromkeys(["int_type", "int_parsing", "int_parsing_size", "int_from_float"], _WHOLE_NUMBER),
    **dict.fromkeys(["float_type", "float_parsing"], "a number"),
    **dict.fromkeys(["bool_type", "bool_parsing"], "true or false"),
    **dict.fromkeys(["string_type", "string_sub_type", "string_unicode", "path_type"], "text"),
    **dict.fromkeys(["list_type", "tuple_type", "set_type", "frozen_set_type", "iterable_type"], _LIST),
    **dict.fromkeys(["dict_type", "mapping_type", "model_type", "model_attributes_type", "dataclass_type"], _MAPPING),
    "none_required": "null",
    "finite_number": "a finite number",
}
_NO_MEMBER = {"union_tag_invalid", "union_tag_not_found"}
_COMPARISONS = {
    "greater_than": ("gt", "greater than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
    "multiple_of": ("multiple_of", "a multiple of"),
}
_LENGTHS = {
    "too_short": ("min_length", "at least", "item"),
    "too_long": ("max_length", "at most", "item"),
    "string_too_short": ("min_length", "at least", "character"),
    "string_too_long": ("max_length", "at most", "character"),
}
_YES, _NO = {"yes", "y", "on", "true", "1"}, {"no", "n", "off", "false", "0"}


@dataclass(frozen=True)
class Failure:
    """One error of pydantic. `loc` is what is left of its way, as the walk goes down."""

    loc: Location
    details: Any  # pydantic_core.ErrorDetails

    @property
    def type(self) -> str:
        return str(self.details["type"])

    @property
    def cause(self) -> Any:
        """The exception that a validator raised, if one did."""
        return self.context.get("error")

    @property
    def context(self) -> dict[str, Any]:
        return self.details.get("ctx") or {}

    @property
    def is_wrong_kind(self) -> bool:
        """Whether the value is nothing for this member of a union, rather than a wrong value for it."""
        if self.loc:
            return False
        return self.type in _KINDS or self.type == "literal_error" or str(self.cause).startswith("expected ")


def message_and_hint(failure: Failure, kind: Any, value: Any) -> tuple[str, str | None]:
    """Say what is wrong with `value`, which should be of `kind`, and what would be right."""
    name, context = failure.type, failure.context
    if name in _KINDS:
        return f"expected {_KINDS[name]}, not {shown(value)}", _hint_for_kind(_KINDS[name], kind, value)
    if name == "literal_error":
        hint = choices(value, literals(kind)) or f"allowed: {context.get('expected')}"
        return f"{shown(value)} is not allowed", hint
    if name in _NO_MEMBER:
        return wrong_kind(kind, value)
    if name in _COMPARISONS:
        limit, phrase = _COMPARISONS[name]
        return f"must be {phrase} {context[limit]:.15g}, not {shown(value)}", None
    if name in _LENGTHS:
        limit, phrase, unit = _LENGTHS[name]
        count, actual = context[limit], context.get("actual_length", len(value) if isinstance(value, str) else None)
        but = "" if actual is None else f", not {actual}"
        return f"must have {phrase} {count} {unit}{'s' if count != 1 else ''}{but}", None
    if name == "string_pattern_mismatch":
        return f"{shown(value)} does not have the right form", f"it must match the pattern {context['pattern']}"
    if failure.cause is not None:
        return _said(failure.cause, value), getattr(failure.cause, "hint", None)
    said = str(failure.details["msg"])
    if said.startswith("Input should be"):
        said = f"expected{said.removeprefix('Input should be')}, not {shown(value)}"
    return said, None


def wrong_kind(kind: Any, value: Any) -> tuple[str, str | None]:
    """Say that a value fits no member of a union, and what the members are."""
    hints = [did_you_mean(value, [str(choice) for choice in literals(kind)])] if isinstance(value, str) else []
    for member in members(kind):
        if bare(member) is bool:
            hints.append(_hint_for_kind("true or false", member, value))
        elif model_of(member) is not None:
            hints.append(_hint_for_kind(_MAPPING, member, value))
    return f"expected {described(kind)}, not {shown(value)}", joined(hints)


def choices(value: object, allowed: Iterable[object]) -> str | None:
    """Return the hint "did you mean 'x'? allowed: x, y", or None where nothing is allowed."""
    names = [choice if isinstance(choice, str) else shown(choice) for choice in allowed]
    if not names:
        return None
    return joined([did_you_mean(value, names), f"allowed: {', '.join(names)}"])


def joined(hints: Iterable[str | None]) -> str | None:
    """Join hints into one: a question stands for itself, the rest is separated by semicolons."""
    return "; ".join(filter(None, hints)).replace("?; ", "? ") or None


def _said(cause: Exception, value: Any) -> str:
    """What a validator said; the parsers of `fields` leave out a value that is no number and no text."""
    text = str(cause) or f"{shown(value)} is not allowed"
    no_quantity = value is None or isinstance(value, bool | tuple | dict)
    return f"{text}, not {shown(value)}" if no_quantity and text.startswith("expected ") else text


def _hint_for_kind(expected: str, kind: Any, value: Any) -> str | None:
    if expected == "true or false":
        word = str(value).lower()
        return "write true" if word in _YES else "write false" if word in _NO else "write true or false"
    if expected == "text" and isinstance(value, bool | int | float):
        return "put it in quotes"
    if expected == _LIST and isinstance(value, str | int | float):
        return f"write [{shown(value)}]" if len(str(value)) <= 40 else "write each item behind a '- '"
    if expected == _MAPPING and (model := model_of(kind)) is not None:
        return f"keys of the mapping: {', '.join(keys_of(model))}" if model.model_fields else "write {}"
    if expected == _WHOLE_NUMBER and isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return f"write {int(value)}"
    if "number" in expected and isinstance(value, str) and isinstance(_as_plain(value), int | float):
        return "remove the quotes"
    return None


def _as_plain(text: str) -> object:
    try:
        return plain_scalar(text)
    except ValueError:
        return None
