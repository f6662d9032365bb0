"""Checks a document against a pydantic model, and says in terms of the spec where and how it is wrong.

    Document x model --pydantic--> the model, or SpecError with every problem and its place

The location of an error of pydantic mixes keys, indices and labels of union members. Here the errors go down the JSON
Schema and the document side by side, so that each ends at the value itself, with what is allowed there, and the errors
of the members of one union become one problem.

Validation is strict: text is never a number, 1 is never true. A list of a spec is a tuple, for fields and validators.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from boomspec.core.errors import Problem, did_you_mean
from boomspec.core.losses import ELSEWHERE
from boomspec.spec.document import Document
from boomspec.spec.schema import TYPES, Schema, described, inside, literals, mappings, narrowed, schema_of
from boomspec.spec.yaml_reader import Location, Node, dotted, plain_or_none, shown

M = TypeVar("M", bound=BaseModel)
Item = str | int  # of a location
# The starts of pydantic's error types for a value of the wrong type, and what was expected.
_EXPECTED = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    **dict.fromkeys(("list", "tuple"), "a list"),
    **dict.fromkeys(("dict", "model"), "a mapping"),
    "none": "null",
}
_WRONG_TYPE = re.compile(r"([a-z]+)_(type|sub_type|attributes_type|unicode|parsing|parsing_size|from_float|required)")
_YES, _NO = {"yes", "y", "on", "true", "1"}, {"no", "n", "off", "false", "0"}


class FieldError(ValueError):
    """What a validator raises: a message, what to do about it, and where it is below the validated value."""

    def __init__(self, message: str, *, hint: str | None = None, at: Location = ()) -> None:
        super().__init__(message)
        self.hint = hint
        self.at = at


def only_one(model: BaseModel, *names: str) -> None:
    """Raise FieldError unless exactly one of these fields is given."""
    given = [name for name in names if getattr(model, name) is not None]
    if len(given) != 1:
        count = f"{' and '.join(given)} are given" if given else "none is given"
        raise FieldError(f"exactly one of {', '.join(names)} is needed: {count}")


def goes_with(model: BaseModel, other: str, *names: str, not_with: str = "") -> None:
    """Raise FieldError at the first of these fields that is given where `other` is not."""
    instead = f", not with {not_with}" if not_with else ""
    for name in names if not getattr(model, other) else ():
        value = getattr(model, name)
        if name in model.model_fields_set and value is not None and value is not False:
            raise FieldError(f"{name} goes with {other}{instead}", at=(name,))


Sections = dict[Node, BaseModel]  # what was validated, by what was written


def validate(model: type[M], document: Document, known: Sections | None = None) -> M:
    """Return the model that the document describes. Raises SpecError with all problems of the document.

    known: sections of other documents, which are not validated again where this one has the same lines. It gets those
    of this one, too: experiments of a sweep differ in a line or two.
    """
    written: dict[str, Node] = document.root.value
    if known and not document.problems:
        data = {key: known.get(node) or node.plain() for key, node in written.items()}
        with suppress(ValidationError):  # it is told from the plain data
            return _noted(model.model_validate(data, strict=True), written, known)
    problems = list(document.problems)
    try:
        value = model.model_validate(document.data, strict=True)
    except ValidationError as error:
        found = _walk([schema_of(model)], _Value(document, (), document.root), _failures(error))
        problems += [problem for problem in found if not document.is_damaged(problem.location or ())]
    else:
        if not problems:
            return value if known is None else _noted(value, written, known)
    raise document.error(problems)


def _noted(value: M, written: Mapping[str, Node], known: Sections) -> M:
    """The value; its sections are noted."""
    for key, node in written.items():
        if isinstance(section := getattr(value, key, None), BaseModel):
            known[node] = section
    return value


@dataclass(frozen=True)
class _Failure:
    """One error of pydantic. `loc`: its location, relative to the value that the walk has reached."""

    loc: Location
    type: str
    message: str
    context: dict[str, Any]
    input: Any
    cause: Any  # what a validator raised

    @property
    def expected(self) -> str | None:
        """What was expected, where the value has the wrong type."""
        match = _WRONG_TYPE.fullmatch(self.type)
        return _EXPECTED.get(match[1]) if match else None


def _failures(error: ValidationError, above: Location = ()) -> Iterator[_Failure]:
    """The errors of pydantic. Where a validator itself validated a model, the errors of that model."""
    for found in error.errors(include_url=False):
        loc, context = (*above, *found["loc"]), found.get("ctx") or {}
        if isinstance(cause := context.get("error"), ValidationError):
            yield from _failures(cause, loc)
        else:
            yield _Failure(loc, found["type"], found["msg"], context, found["input"], cause)


@dataclass(frozen=True)
class _Value:
    """A value on the way down the document. Without a node it is below what a validator has rewritten."""

    document: Document
    location: Location
    node: Node | None

    def step(self, item: Item) -> "_Value":
        node = self.node.get(item) if self.node is not None else None
        return _Value(self.document, self.location if node is None else (*self.location, item), node)

    def plain(self, failure: _Failure) -> Any:
        """The value as it is written; pydantic may have been given what a validator made of it."""
        return failure.input if self.node is None else self.node.plain()

    def problem(self, message: str, hint: str | None = None, *, key: bool = False, where: str | None = None) -> Problem:
        # The key is the better place for a mapping, which may start on a later line, and for null, which is nothing.
        key = key or (self.node is not None and (self.node.value is None or isinstance(self.node.value, dict)))
        return self.document.problem(self.location, message, hint, key=key, where=where)


def _walk(schemas: list[Schema], value: _Value, failures: Iterable[_Failure]) -> Iterator[Problem]:
    """The problems of the failures at and below one value. Their locations start at this value."""
    below: dict[str | int, list[_Failure]] = {}
    labelled: dict[str | int, list[_Failure]] = {}  # by the label of a member of a union, not by a key or an index
    for failure in failures:
        if not failure.loc:
            yield _at(value, schemas, failure)
            continue
        item, *rest = failure.loc
        is_key = isinstance(item, int) or value.node is None or value.node.get(item) is not None
        is_key = is_key or (not rest and failure.type in ("missing", "extra_forbidden"))
        (below if is_key else labelled).setdefault(item, []).append(replace(failure, loc=tuple(rest)))
    if labelled:
        yield from _walk_union(schemas, value, labelled)
    first = {item: (group[0].type, group[0].loc) for item, group in below.items()}
    unknown = [item for item in below if first[item] == ("extra_forbidden", ())]
    missing = [item for item in below if first[item] == ("missing", ())]
    yield from _wrong_keys(schemas, value, unknown, missing)
    for item, group in below.items():
        if group[0].loc == ("[key]",):
            hint = choices(item, literals([schema["propertyNames"] for schema in schemas if "propertyNames" in schema]))
            yield value.step(item).problem(f"key {shown(item)} is not allowed", hint, key=True)
        elif item not in unknown and item not in missing:
            yield from _walk(inside(schemas, item), value.step(item), group)


def _walk_union(schemas: list[Schema], value: _Value, groups: dict[str | int, list[_Failure]]) -> Iterator[Problem]:
    """pydantic lists the failures of every member, or of the one that a tag chose, below the label of the member."""

    def is_nothing(failure: _Failure) -> bool:
        """Whether the value is nothing for this member of the union, rather than a wrong value for it."""
        wrong = failure.expected or failure.type == "literal_error" or str(failure.cause).startswith("expected ")
        return not failure.loc and bool(wrong)

    def distance(group: list[_Failure]) -> tuple[bool, int]:
        """A value that says by one of its own keys that it is for another member ({kind: hub}) is furthest away."""
        return any(f.type == "literal_error" and len(f.loc) == 1 for f in group), len(group)

    if fitting := {label: group for label, group in groups.items() if not any(map(is_nothing, group))}:
        label = min(fitting, key=lambda label: distance(fitting[label]))
        yield from _walk(narrowed(schemas, label, value.plain(fitting[label][0])), value, fitting[label])
    else:
        yield value.problem(*_wrong_type(schemas, value.plain(next(iter(groups.values()))[0])))


def _wrong_keys(schemas: list[Schema], value: _Value, unknown: list[Item], missing: list[Item]) -> Iterator[Problem]:
    known = mappings(schemas)
    fields: dict[str, Schema] = known[0]["properties"] if known else {}
    written = value.node.value if value.node is not None else None
    for key in map(str, unknown):
        closest = _called_elsewhere(key, fields) or did_you_mean(
            key, [name for name in fields if not isinstance(written, dict) or name not in written]
        )
        missing = [item for item in missing if closest != f"did you mean '{item}'?"]  # one mistake, not two
        homes = [name for name in fields if any(key in m["properties"] for m in mappings(inside(known[:1], name)))]
        hints = [closest or (f"'{key}' is a key of '{homes[0]}'" if homes else did_you_mean(key, list(fields)))]
        if known:
            hints.append(f"allowed here: {', '.join(fields)}" if fields else "no keys are allowed here")
        # A validator turns a name into {name: {}}.
        message = f"unknown key {shown(key)}" if isinstance(written, dict) else f"{shown(key)} is not allowed"
        yield value.step(key).problem(message, joined(hints), key=True, where=dotted(value.location))
    if any(isinstance(item, int) for item in missing):
        count = len(written) if isinstance(written, tuple) else 0
        yield value.problem(f"must have {count + len(missing)} items, not {count}")
        return
    for key in map(str, missing):
        yield value.problem(f"missing '{key}'", fields.get(key, {}).get("description"), key=True)


def _called_elsewhere(key: str, fields: Mapping[str, Schema]) -> str | None:
    """Ask for the field that others know by this name: "did you mean 'reverse_kl'?" for "rkl"."""
    plain = key.lower().replace("-", "_")
    return next((f"did you mean '{name}'?" for name, of in fields.items() if plain in of.get(ELSEWHERE, ())), None)


def _at(value: _Value, schemas: list[Schema], failure: _Failure) -> Problem:
    """The problem of a value itself. Where no member of a union has its tag, that is mostly a problem of the tag."""
    discriminator = str(failure.context.get("discriminator"))  # a key in quotes, or the name of a function
    if discriminator.startswith("'") and value.node is not None and isinstance(value.node.value, dict):
        key = discriminator.strip("'")
        allowed, tag = literals(inside(schemas, key)), value.step(key)
        if tag.node is None:
            return value.problem(f"missing '{key}'", choices("", allowed), key=True)
        return tag.problem(f"{shown(tag.node.plain())} is not allowed", choices(tag.node.plain(), allowed))
    message, hint = _message_and_hint(failure, schemas, value.plain(failure))
    for item in getattr(failure.cause, "at", ()):
        value = value.step(item)
    return value.problem(message, hint)


def _message_and_hint(failure: _Failure, schemas: list[Schema], value: Any) -> tuple[str, str | None]:
    if expected := failure.expected:
        return f"expected {expected}, not {shown(value)}", _hint(expected, schemas, value)
    if failure.type == "literal_error":
        hint = choices(value, literals(schemas)) or f"allowed: {failure.context.get('expected')}"
        return f"{shown(value)} is not allowed", hint
    if failure.type in ("union_tag_invalid", "union_tag_not_found"):
        return _wrong_type(schemas, value)
    if failure.type == "string_pattern_mismatch":
        hint = f"it must match the pattern {failure.context['pattern']}"
        return f"{shown(value)} does not have the right form", hint
    if failure.cause is not None:
        text = str(failure.cause) or f"{shown(value)} is not allowed"
        # A parser of a quantity leaves out a value that is neither a number nor text.
        if text.startswith("expected ") and (value is None or isinstance(value, bool | tuple | dict)):
            text += f", not {shown(value)}"
        return text, getattr(failure.cause, "hint", None)
    text = failure.message.replace("greater than or equal to", "at least").replace("less than or equal to", "at most")
    if limit := re.fullmatch(r"Input should be ((?:greater|less|at least|at most|a multiple).*)", text):
        return f"must be {limit[1]}, not {shown(value)}", None
    if length := re.fullmatch(r"\w+ should have (at (?:least|most) \d+ \w+)(?: after validation)?(, not \d+)?", text):
        return f"must have {length[1]}" + (f", not {len(value)}" if isinstance(value, str) else length[2] or ""), None
    if text.startswith("Input should be"):
        return f"expected{text.removeprefix('Input should be')}, not {shown(value)}", None
    return text, None


def _wrong_type(schemas: list[Schema], value: Any) -> tuple[str, str | None]:
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
