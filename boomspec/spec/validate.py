"""Checks a document against a pydantic model and says where it is wrong.

    Document x model --pydantic--> the model, or SpecError with every problem and its place

pydantic's errors name their place by a `loc` in which field names, indices and labels of union members
are mixed. Here the errors are carried down the model and the data side by side, so each ends at the value
that is meant, with what is allowed there, and the errors of the members of one union become one problem.

Validation is strict: text is never a number, 1 is never true. A list of the file is a tuple, and so a
field that takes one is a tuple field, and what a before-validator makes for it is a tuple.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from boomspec.core.errors import Problem, did_you_mean, printable
from boomspec.spec.document import Document
from boomspec.spec.kinds import inside, is_labelled, key_kind, keys_of, kind_of, length_of, literals, members, model_of
from boomspec.spec.messages import Failure, choices, joined, message_and_hint, wrong_kind
from boomspec.spec.scalars import shown
from boomspec.spec.yaml_reader import Location, dotted

M = TypeVar("M", bound=BaseModel)


class FieldError(ValueError):
    """What a validator raises: a message, what to do about it, and where below the validated value it is."""

    def __init__(self, message: str, *, hint: str | None = None, at: Location = ()) -> None:
        super().__init__(message)
        self.hint = hint
        self.at = at


def only_one(model: BaseModel, *names: str) -> None:
    """Raise FieldError unless exactly one of these fields is given."""
    given = [name for name in names if getattr(model, name) is not None]
    if len(given) != 1:
        what = "none is given" if not given else f"{' and '.join(given)} are given"
        raise FieldError(f"exactly one of {', '.join(names)} is needed: {what}")


def validate(model: type[M], document: Document) -> M:
    """Return the model that the document describes. Raises SpecError with all problems of the document."""
    problems = list(document.problems)
    try:
        value = model.model_validate(document.data, strict=True)
    except ValidationError as error:
        findings = _walk(model, _Here((), document.data), _failures(error))
        problems += [found.problem(document) for found in findings if not document.is_damaged(found.location)]
    else:
        if not problems:
            return value
    raise document.error(problems)


_UNKNOWN = object()


@dataclass(frozen=True)
class _Here:
    """A value of the document on the way down; _UNKNOWN below what a validator has rewritten."""

    location: Location
    value: Any

    def step(self, item: str | int) -> _Here:
        known = isinstance(self.value, dict) and item in self.value
        known = known or (isinstance(self.value, tuple) and isinstance(item, int) and item < len(self.value))
        return _Here((*self.location, item), self.value[item]) if known else _Here(self.location, _UNKNOWN)


@dataclass(frozen=True)
class _Finding:
    location: Location
    message: str
    hint: str | None = None
    at_key: bool = False
    where: Location | None = None  # when it is not the location

    def problem(self, document: Document) -> Problem:
        where = dotted(self.location if self.where is None else self.where)
        message, hint = _printable(self.message), self.hint and _printable(self.hint)
        return document.problem(self.location, message, hint, key=self.at_key, where=where)


def _printable(text: str) -> str:
    """A text of a validator may quote a value: it must not move the terminal's cursor, nor flood it."""
    text = printable(text)
    return text if len(text) <= 500 else f"{text[:497]}..."


def _failures(error: ValidationError) -> list[Failure]:
    """The errors of pydantic. Where a validator itself validated a model, that model's errors."""
    found: list[Failure] = []
    for details in error.errors(include_url=False):
        failure = Failure(details["loc"], details)
        if isinstance(failure.cause, ValidationError):
            found += [Failure((*failure.loc, *inner.loc), inner.details) for inner in _failures(failure.cause)]
        else:
            found.append(failure)
    return found


def _by_first(failures: Iterable[Failure]) -> dict[str | int, list[Failure]]:
    """Group failures below a value by the first item of their loc, and take that item off."""
    groups: dict[str | int, list[Failure]] = {}
    for failure in failures:
        if failure.loc:
            groups.setdefault(failure.loc[0], []).append(Failure(failure.loc[1:], failure.details))
    return groups


def _walk(kind: Any, here: _Here, failures: list[Failure]) -> Iterator[_Finding]:
    """Turn the failures at and below one value into findings. Their locs start at this value."""
    choice = members(kind)
    if len(choice) > 1:
        yield from _walk_union(kind, choice, here, failures)
        return
    kind = choice[0]
    for failure in failures:
        if not failure.loc:
            yield _at(here, kind, failure)
    groups = _by_first(failures)
    yield from _wrong_keys(kind, here, groups)
    for item, group in groups.items():
        if group[0].loc == ("[key]",):
            hint = choices(item, literals(key_kind(kind)))
            yield _Finding(here.step(item).location, f"key {shown(item)} is not allowed", hint, at_key=True)
        elif not _only("extra_forbidden", group) and not _only("missing", group):
            yield from _walk(inside(kind, item), here.step(item), group)


def _only(error_type: str, group: list[Failure]) -> bool:
    return not group[0].loc and group[0].type == error_type


def _wrong_keys(kind: Any, here: _Here, groups: dict[str | int, list[Failure]]) -> Iterator[_Finding]:
    """Unknown and missing keys of a mapping, missing items of a tuple of fixed length."""
    unknown = [item for item, group in groups.items() if _only("extra_forbidden", group)]
    missing = [item for item, group in groups.items() if _only("missing", group)]
    model = model_of(kind)
    fields = keys_of(model) if model is not None else {}
    for key in map(str, unknown):
        absent = [name for name in fields if not isinstance(here.value, dict) or name not in here.value]
        closest = did_you_mean(key, absent)
        missing = [item for item in missing if closest != f"did you mean '{item}'?"]  # one mistake, not two
        homes = [name for name, field in fields.items() if any(key in keys_of(m) for m in _models(kind_of(field)))]
        hints = [closest or (f"'{key}' is a key of '{homes[0]}'" if homes else did_you_mean(key, list(fields)))]
        if model is not None:
            hints.append(f"allowed here: {', '.join(fields)}" if fields else "no keys are allowed here")
        # A validator makes {name: {}} of a bare name.
        message = f"unknown key {shown(key)}" if isinstance(here.value, dict) else f"{shown(key)} is not allowed"
        yield _Finding(here.step(key).location, message, joined(hints), at_key=True, where=here.location)
    if any(isinstance(item, int) for item in missing):
        count = len(here.value) if isinstance(here.value, tuple) else 0
        yield _Finding(here.location, f"must have {length_of(kind)} items, not {count}")
        return
    for key in map(str, missing):
        hint = fields[key].description if key in fields else None
        yield _Finding(here.location, f"missing '{key}'", hint, at_key=True)


def _models(kind: Any) -> list[type[BaseModel]]:
    return [model for model in map(model_of, members(kind)) if model is not None]


def _walk_union(kind: Any, choice: list[Any], here: _Here, failures: list[Failure]) -> Iterator[_Finding]:
    """pydantic lists the failures of every member, or of the one that a tag chose, behind the member's label."""
    for failure in failures:
        if not failure.loc:
            yield _tag_problem(here, kind, failure)
    groups = _by_first(failures)
    fitting = {label: group for label, group in groups.items() if not any(failure.is_wrong_kind for failure in group)}
    if fitting:
        label = min(fitting, key=lambda label: (_is_other(fitting[label]), len(fitting[label])))
        yield from _walk(_member(choice, label, groups, here.value), here, fitting[label])
    elif groups:
        first = next(iter(groups.values()))[0]
        message, hint = wrong_kind(kind, _value(here, first))
        yield _Finding(here.location, message, hint, at_key=_is_below(here.value))


def _is_other(group: list[Failure]) -> bool:
    """Whether the value says by one of its own keys that it is meant for another member: {kind: hub}."""
    return any(failure.type == "literal_error" and len(failure.loc) == 1 for failure in group)


def _member(choice: list[Any], label: str | int, groups: dict[str | int, list[Failure]], value: Any) -> Any:
    """The member of a union that pydantic calls `label`."""
    if len(groups) == len(choice):  # one group for each member, in order
        return choice[list(groups).index(label)]
    named = [member for member in choice if is_labelled(member, str(label))]
    models = [member for member in choice if model_of(member) is not None]
    return next(iter(named or (models if isinstance(value, dict) else [])), None)


def _tag_problem(here: _Here, kind: Any, failure: Failure) -> _Finding:
    """A failure of the union itself: mostly that no member has the tag of the value."""
    discriminator = str(failure.context.get("discriminator"))  # a quoted key, or the name of a function
    if not discriminator.startswith("'") or not isinstance(here.value, dict):
        return _at(here, kind, failure)
    key = discriminator.strip("'")
    allowed = [tag.strip("'") for tag in str(failure.context.get("expected_tags", "")).split(", ") if tag]
    allowed = allowed or [str(value) for m in _models(kind) if key in keys_of(m) for value in literals(inside(m, key))]
    below = here.step(key)
    if below.value is _UNKNOWN:
        return _Finding(here.location, f"missing '{key}'", choices("", allowed), at_key=True)
    return _Finding(below.location, f"{shown(below.value)} is not allowed", choices(below.value, allowed))


def _at(here: _Here, kind: Any, failure: Failure) -> _Finding:
    message, hint = message_and_hint(failure, kind, _value(here, failure))
    for item in getattr(failure.cause, "at", ()):
        here = here.step(item)
    return _Finding(here.location, message, hint, at_key=_is_below(here.value))


def _value(here: _Here, failure: Failure) -> Any:
    """The value as written; what pydantic was given may be what a validator made of it."""
    return failure.details["input"] if here.value is _UNKNOWN else here.value


def _is_below(value: Any) -> bool:
    """Whether a value's key is the better place to point at: a mapping starts on a later line, null is nothing."""
    return value is None or isinstance(value, dict)
