"""Checks a document against a pydantic model, and says where it is wrong.

    Document x model --pydantic--> the model, or SpecError with every problem and its place

The location of an error of pydantic mixes keys, indices and labels of union members. Here the errors go down the JSON
Schema and the document side by side, so that each ends at the value itself, with what is allowed there, and the errors
of the members of one union become one problem.

Validation is strict: text is never a number, 1 is never true. A list of a spec is a tuple, for fields and validators.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from boomspec.core.errors import Problem, did_you_mean, printable
from boomspec.spec.document import Document
from boomspec.spec.messages import Failure, choices, joined, message_and_hint, wrong_type
from boomspec.spec.schema import Schema, inside, literals, mappings, narrowed, schema_of
from boomspec.spec.yaml_reader import Location, Node, dotted, shown

M = TypeVar("M", bound=BaseModel)
_LONGEST = 500  # characters of a message, which may quote a value


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


def validate(model: type[M], document: Document) -> M:
    """Return the model that the document describes. Raises SpecError with all problems of the document."""
    problems = list(document.problems)
    try:
        value = model.model_validate(document.data, strict=True)
    except ValidationError as error:
        start = _Value(document, (), document.root)
        found = _walk([schema_of(model)], start, _failures(error))
        problems += [problem for problem in found if not document.is_damaged(problem.location or ())]
    else:
        if not problems:
            return value
    raise document.error(problems)


@dataclass(frozen=True)
class _Value:
    """A value on the way down the document. Without a node it is below what a validator has rewritten."""

    document: Document
    location: Location
    node: Node | None

    def step(self, item: str | int) -> _Value:
        node = self.node.get(item) if self.node is not None else None
        return _Value(self.document, self.location if node is None else (*self.location, item), node)

    def plain(self, failure: Failure) -> Any:
        """The value as it is written; pydantic may have been given what a validator made of it."""
        return failure.details["input"] if self.node is None else self.node.plain()

    def problem(
        self, message: str, hint: str | None = None, *, key: bool = False, where: Location | None = None
    ) -> Problem:
        shown_at = dotted(self.location if where is None else where)
        return self.document.problem(self.location, _short(message), hint and _short(hint), key=key, where=shown_at)

    def is_label(self, failure: Failure) -> bool:
        """Whether the location starts with the label of a member of a union, rather than with a key or an index."""
        item, *rest = failure.loc
        is_key = isinstance(item, int) or self.node is None or self.node.get(item) is not None
        return not is_key and (bool(rest) or failure.type not in ("missing", "extra_forbidden"))

    def refused(self, failure: Failure, schemas: list[Schema]) -> Problem:
        message, hint = message_and_hint(failure, schemas, self.plain(failure))
        value = self
        for item in getattr(failure.cause, "at", ()):
            value = value.step(item)
        return value.problem(message, hint, key=value.is_below_its_key)

    @property
    def is_below_its_key(self) -> bool:
        """Whether the key is the better place to point at: a mapping may start on a later line, null is nothing."""
        return self.node is not None and (self.node.value is None or isinstance(self.node.value, dict))


def _short(text: str) -> str:
    text = printable(text)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def _failures(error: ValidationError) -> list[Failure]:
    """The errors of pydantic. Where a validator itself validated a model, the errors of that model."""
    found: list[Failure] = []
    for details in error.errors(include_url=False):
        failure = Failure(details["loc"], details)
        if isinstance(failure.cause, ValidationError):
            found += [Failure((*failure.loc, *inner.loc), inner.details) for inner in _failures(failure.cause)]
        else:
            found.append(failure)
    return found


def _walk(schemas: list[Schema], value: _Value, failures: list[Failure]) -> Iterator[Problem]:
    """The problems of the failures at and below one value. Their locations start at this value."""
    yield from (_at(value, schemas, failure) for failure in failures if not failure.loc)
    below: dict[str | int, list[Failure]] = {}
    labelled: dict[str | int, list[Failure]] = {}
    for failure in failures:
        if failure.loc:
            groups = labelled if value.is_label(failure) else below
            groups.setdefault(failure.loc[0], []).append(Failure(failure.loc[1:], failure.details))
    if labelled:
        yield from _walk_union(schemas, value, labelled)
    yield from _wrong_keys(schemas, value, below)
    for item, group in below.items():
        if group[0].loc == ("[key]",):
            hint = choices(item, literals([schema["propertyNames"] for schema in schemas if "propertyNames" in schema]))
            yield value.step(item).problem(f"key {shown(item)} is not allowed", hint, key=True)
        elif not _only("extra_forbidden", group) and not _only("missing", group):
            yield from _walk(inside(schemas, item), value.step(item), group)


def _walk_union(schemas: list[Schema], value: _Value, groups: dict[str | int, list[Failure]]) -> Iterator[Problem]:
    """pydantic lists the failures of every member, or of the one that a tag chose, below the label of the member."""
    fitting = {label: group for label, group in groups.items() if not any(failure.is_wrong_type for failure in group)}
    if fitting:
        label = min(fitting, key=lambda label: (_is_other(fitting[label]), len(fitting[label])))
        plain = value.plain(fitting[label][0])
        yield from _walk(narrowed(schemas, label, plain), value, fitting[label])
    else:
        message, hint = wrong_type(schemas, value.plain(next(iter(groups.values()))[0]))
        yield value.problem(message, hint, key=value.is_below_its_key)


def _is_other(group: list[Failure]) -> bool:
    """Whether the value says by one of its own keys that it is for another member: {kind: hub}."""
    return any(failure.type == "literal_error" and len(failure.loc) == 1 for failure in group)


def _only(error_type: str, group: list[Failure]) -> bool:
    return not group[0].loc and group[0].type == error_type


def _wrong_keys(schemas: list[Schema], value: _Value, groups: dict[str | int, list[Failure]]) -> Iterator[Problem]:
    """Unknown and missing keys of a mapping, missing items of a list of fixed length."""
    unknown = [item for item, group in groups.items() if _only("extra_forbidden", group)]
    missing = [item for item, group in groups.items() if _only("missing", group)]
    known = mappings(schemas)
    fields: dict[str, Schema] = known[0]["properties"] if known else {}
    written = value.node.value if value.node is not None else None
    for key in map(str, unknown):
        absent = [name for name in fields if not isinstance(written, dict) or name not in written]
        closest = did_you_mean(key, absent)
        missing = [item for item in missing if closest != f"did you mean '{item}'?"]  # one mistake, not two
        homes = [name for name in fields if any(key in m["properties"] for m in mappings(inside(known[:1], name)))]
        hints = [closest or (f"'{key}' is a key of '{homes[0]}'" if homes else did_you_mean(key, list(fields)))]
        if known:
            hints.append(f"allowed here: {', '.join(fields)}" if fields else "no keys are allowed here")
        # A validator turns a name into {name: {}}.
        message = f"unknown key {shown(key)}" if isinstance(written, dict) else f"{shown(key)} is not allowed"
        yield value.step(key).problem(message, joined(hints), key=True, where=value.location)
    if any(isinstance(item, int) for item in missing):
        count = len(written) if isinstance(written, tuple) else 0
        yield value.problem(f"must have {count + len(missing)} items, not {count}")
        return
    for key in map(str, missing):
        yield value.problem(f"missing '{key}'", fields.get(key, {}).get("description"), key=True)


def _at(value: _Value, schemas: list[Schema], failure: Failure) -> Problem:
    """The problem of a value itself. Where no member of a union has its tag, that is mostly a problem of the tag."""
    discriminator = str(failure.context.get("discriminator"))  # a key in quotes, or the name of a function
    if not discriminator.startswith("'") or value.node is None or not isinstance(value.node.value, dict):
        return value.refused(failure, schemas)
    key = discriminator.strip("'")
    allowed = literals(inside(schemas, key))
    tag = value.step(key)
    if tag.node is None:
        return value.problem(f"missing '{key}'", choices("", allowed), key=True)
    return tag.problem(f"{shown(tag.node.plain())} is not allowed", choices(tag.node.plain(), allowed))
