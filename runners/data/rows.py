"""What a row of a text source gives: a text, or why it has none."""

from typing import Any, NamedTuple

from boomspec.core.errors import did_you_mean

MARK = "\ufeff"


class BadRow(NamedTuple):
    """What is wrong with a row: its `kind`, to count by, and the whole message with the row's place."""

    kind: str
    message: str
    hint: str | None = None


def text_of(row: Any, field: str, place: str) -> str | BadRow:
    """The text of a row: a field, or one inside of others by its dotted path."""
    value = field_of(row, field, place)
    if isinstance(value, BadRow):
        return value
    if not isinstance(value, str):
        kind = "null" if value is None else type(value).__name__
        return BadRow("null" if value is None else "not text", f"{place}: field '{field}' is {kind}, not text")
    return whole_text(value.removeprefix(MARK))


def field_of(row: Any, field: str, place: str, *, setting: str = "data.text_field") -> Any | BadRow:
    """The value of a field, or of one inside of others by its dotted path; `setting`: what of a spec names it."""
    if not isinstance(row, dict):
        kind = "null" if row is None else type(row).__name__
        return BadRow("not an object", f"{place}: expected an object with a field '{field}', not {kind}")
    value: Any = row
    for name in [field] if field in row else field.split("."):
        if not isinstance(value, dict) or name not in value:
            return no_field(place, field, [str(key) for key in value] if isinstance(value, dict) else [], setting)
        value = value[name]
    return value


def whole_text(text: str) -> str:
    """JSON can hold half a character ("\\ud83d"), which real web text does now and then; no encoding has it."""
    return text.encode("utf-8", errors="replace").decode("utf-8")


def no_field(place: str, field: str, found: list[str], setting: str = "data.text_field") -> BadRow:
    hint = did_you_mean(field.rpartition(".")[2], found) or f"set {setting}"
    return BadRow("no such field", f"{place}: has no field '{field}' (it has: {', '.join(found[:20]) or 'none'})", hint)
