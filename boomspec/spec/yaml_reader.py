"""Builds plain data with places from YAML text.

    text --PyYAML's events--> Tree(data, root place, problems)

The language is the JSON subset of YAML with its comforts (comments, block style, plain text, anchors),
read by the rules of YAML 1.2: `no` and `12:30` are text, 3e-4 is a number. PyYAML only scans and parses
here; what it would construct (dates, sexagesimals, objects, overwritten keys) never exists. A merge key (<<) brings
the keys of a mapping that are not written out beside it, with the places that they have there.
Whatever two readers could understand differently is a problem, not a guess: duplicate keys, 010, tags.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

import yaml

from boomspec.core.errors import Problem, SpecError, did_you_mean
from boomspec.spec.scalars import plain_scalar, shown

MAX_NODES = 10_000  # with aliases expanded: a few lines of aliases can stand for billions of values
MAX_DEPTH = 50
MERGE = "<<"

Location = tuple[str | int, ...]
"""The way from the top of the data to a value: ("interpolate", "sizes", 2)."""


@dataclass(frozen=True)
class Place:
    """Where a value stands, where its key stands, and the places of what it holds. `text`: an unquoted scalar's own."""

    line: int
    column: int
    key: tuple[int, int] | None = None
    children: dict[str | int, Place] = field(default_factory=dict)
    file: Path = Path()
    text: str | None = None


@dataclass(frozen=True)
class Tree:
    """What one YAML document holds. `damaged` are the values that stand in for what could not be read.

    Lists are tuples: a spec is read, never changed, and strict validation gives frozen models what they hold.
    """

    data: dict[str, Any]
    root: Place
    problems: tuple[Problem, ...] = ()
    damaged: frozenset[Location] = frozenset()


def build_tree(text: str, *, file: Path) -> Tree:
    """Parse the text of one mapping. Raises SpecError where it is no YAML, or too large or deep to be a spec."""
    return _Builder(text, file).tree()


def dotted(location: Location) -> str:
    """Return a location as people write it: "distill.losses.kl", "sizes[2]", "variants.'no cosine'"."""
    parts = [
        f"[{item}]" if isinstance(item, int) else f".{item}" if re.fullmatch(r"[\w/-]+", item) else f".{item!r}"
        for item in location
    ]
    return "".join(parts).removeprefix(".")


@dataclass(frozen=True)
class _Built:
    """A value with its places; nodes and levels below it count what its aliases would expand to."""

    value: Any
    place: Place
    nodes: int = 1
    height: int = 0


class _Builder:
    """One pass over the parser's events. Recursion is bounded by MAX_DEPTH, memory by MAX_NODES."""

    def __init__(self, text: str, file: Path) -> None:
        self._text, self._file = text, file
        self._lines = text.splitlines() or [""]
        self._events: Iterator[Any] = yaml.parse(text, Loader=yaml.SafeLoader)
        self._mark: Any = None  # end of the last event
        self._anchors: dict[str, _Built | None] = {}  # None: still being built
        self._anchored: dict[str, Location] = {}
        self._nodes = 0
        self._problems: list[Problem] = []
        self._damaged: set[Location] = set()

    def tree(self) -> Tree:
        self._next()  # the stream's start
        event = self._next()
        if isinstance(event, yaml.StreamEndEvent):
            self._stop((1, 1), "the file holds no data", "a spec is a mapping: lines of 'key: value'")
        if event.version or event.tags:
            self._problem(event, (), "directives (%) are not allowed", "remove the line")
        start = self._next()
        built = self._build(start, ())
        if not isinstance(built.value, dict):
            self._stop(
                self._spot(start.start_mark),
                f"expected a mapping at the top of the file, not {shown(built.value)}",
                "a spec is a mapping: lines of 'key: value'",
            )
        self._next()  # the document's end
        if not isinstance(event := self._next(), yaml.StreamEndEvent):
            self._problem(event, (), "a second document starts here", "one file holds one spec: remove the '---'")
        return Tree(built.value, built.place, tuple(self._problems), frozenset(self._damaged))

    def _next(self) -> Any:
        try:
            event = next(self._events)
        except yaml.YAMLError as error:
            mark, message, hint = _syntax_problem(error)
            self._stop(self._spot(mark), message, hint)
        except (ValueError, OverflowError):  # of chr() and int(): "\UFFFFFFFF", %YAML 1.999...
            self._stop(self._spot(self._mark), "not valid YAML: behind this place a number is out of range", None)
        self._mark = event.end_mark
        return event

    def _build(self, event: Any, location: Location) -> _Built:
        """Build the value that starts with `event`."""
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event, location)
        self._count(1, len(location), event)
        if event.anchor in self._anchors:
            self._problem(event, location, f"anchor '&{event.anchor}' is defined twice", "give it another name")
        if event.tag is not None:
            self._problem(event, location, "tags (!) are not allowed", "remove it; put text in quotes", damaged=True)
        if event.anchor is not None:
            self._anchors[event.anchor], self._anchored[event.anchor] = None, location
        if isinstance(event, yaml.ScalarEvent):
            place = self._place(event, text=None if event.style else event.value)
            built = _Built(self._scalar(event, location), place)
        elif isinstance(event, yaml.SequenceStartEvent):
            built = self._sequence(event, location)
        else:
            built = self._mapping(event, location)
        if event.anchor is not None:
            self._anchors[event.anchor] = built
        return built

    def _scalar(self, event: Any, location: Location) -> object:
        if event.style is not None and event.style != "":
            if hidden := re.search("[\0\ud800-\udfff]", event.value):
                self._problem(event, location, f"text cannot hold the character {hidden[0]!r}", None, damaged=True)
                return ""
            return event.value
        try:
            return plain_scalar(event.value)
        except ValueError as error:
            self._problem(event, location, str(error), "put it in quotes if it is text", damaged=True)
            return None

    def _sequence(self, start: Any, location: Location) -> _Built:
        items: list[_Built] = []
        while not isinstance(event := self._next(), yaml.SequenceEndEvent):
            items.append(self._build(event, (*location, len(items))))
        return self._container(start, tuple(item.value for item in items), dict(enumerate(items)))

    def _mapping(self, start: Any, location: Location) -> _Built:
        entries: dict[str, _Built] = {}
        spots: dict[str, tuple[int, int]] = {}
        merged: dict[str, tuple[_Built, Location]] | None = None
        while not isinstance(event := self._next(), yaml.MappingEndEvent):
            if isinstance(event, yaml.ScalarEvent) and not event.style and event.value == MERGE:
                if merged is not None:
                    self._problem(event, location, "a second merge key (<<)", "merge several in one: <<: [*a, *b]")
                merged = {**self._merged(event, location), **(merged or {})}
                continue
            key, spot = self._key(event, location), self._spot(event.start_mark)
            built = self._build(self._next(), (*location, "?" if key is None else key))
            if key in entries:
                message = f"duplicate key {shown(key)}, first given on line {spots[key][0]}"
                self._problem(event, location, message, "keep one of the two")
            elif key is not None:
                entries[key] = replace(built, place=replace(built.place, key=spot))
                spots[key] = spot
        for key, (built, origin) in (merged or {}).items():
            if key not in entries:  # what is written out counts, wherever it stands
                entries[key] = built
                self._damage_as(origin, (*location, key))
        return self._container(start, {key: built.value for key, built in entries.items()}, entries)

    def _merged(self, key: Any, location: Location) -> dict[str, tuple[_Built, Location]]:
        """The entries that a merge key brings, each with where it was built: of one mapping, or of several.

        Of several the first that has a key counts.
        """
        location = (*location, MERGE)
        built = self._build(self._next(), location)
        several = isinstance(built.value, tuple)
        sources = (
            [(value, built.place.children[i], (*location, i)) for i, value in enumerate(built.value)] if several else []
        )
        found: dict[str, tuple[_Built, Location]] = {}
        for value, place, at in sources or [(built.value, built.place, location)]:
            if isinstance(value, dict):
                for name, inner in value.items():
                    found.setdefault(name, (_Built(inner, place.children[name]), (*at, name)))
                continue
            if at not in self._damaged:
                hint = "name a mapping above by its alias (<<: *name), or several: <<: [*a, *b]"
                self._problem(key, location[:-1], f"a merge key (<<) takes a mapping, not {shown(value)}", hint)
            self._damaged.add(location[:-1])  # what it lacks is no problem of its own
        return found

    def _damage_as(self, origin: Location, location: Location) -> None:
        """What could not be read at one place cannot be read where it is repeated."""
        for damaged in [d for d in self._damaged if d[: len(origin)] == origin]:
            self._damaged.add((*location, *damaged[len(origin) :]))

    def _container(self, start: Any, value: Any, entries: dict[Any, _Built]) -> _Built:
        children = {key: built.place for key, built in entries.items()}
        return _Built(
            value,
            self._place(start, children=children),
            1 + sum(built.nodes for built in entries.values()),
            1 + max((built.height for built in entries.values()), default=0),
        )

    def _key(self, event: Any, location: Location) -> str | None:
        """Return the text of a mapping's key, or None after a problem where it cannot be one."""
        known = len(self._problems)
        key = self._build(event, (*location, "?")).value
        if isinstance(key, str) and len(self._problems) == known:
            return key
        if len(self._problems) == known:
            self._problem(event, location, f"a key must be text, not {shown(key)}", "put it in quotes if it is the key")
        return None

    def _alias(self, event: Any, location: Location) -> _Built:
        place = self._place(event)
        built = self._anchors.get(event.anchor)
        if built is None:
            message, hint = f"alias '*{event.anchor}' is inside of its own anchor", "a value cannot hold itself"
            if event.anchor not in self._anchors:
                message = f"alias '*{event.anchor}' has no anchor above it"
                hint = did_you_mean(event.anchor, list(self._anchors)) or "put text that starts with '*' in quotes"
            self._problem(event, location, message, hint, damaged=True)
            return _Built(None, place)
        self._count(built.nodes, len(location) + built.height, event)
        self._damage_as(self._anchored[event.anchor], location)
        # A copy, so that changing one value of the data never changes another.
        place = replace(place, children=built.place.children, text=built.place.text)
        return replace(built, value=copy.deepcopy(built.value), place=place)

    def _count(self, nodes: int, depth: int, event: Any) -> None:
        self._nodes += nodes
        if self._nodes > MAX_NODES:
            hint = "aliases count as often as they are used" if self._anchors else "a spec is a short text"
            self._stop(self._spot(event.start_mark), f"more than {MAX_NODES:,} values in one file", hint)
        if depth > MAX_DEPTH:
            self._stop(self._spot(event.start_mark), f"nested more than {MAX_DEPTH} levels deep", None)

    def _place(self, event: Any, **more: Any) -> Place:
        return Place(*self._spot(event.start_mark), file=self._file, **more)

    def _spot(self, mark: Any) -> tuple[int, int]:
        """Line and column of a mark, from 1. The end of the file counts as the end of its last line."""
        if mark is None:
            return 1, 1
        if mark.line >= len(self._lines):
            return len(self._lines), len(self._lines[-1]) + 1
        return mark.line + 1, mark.column + 1

    def _problem(
        self, event: Any, location: Location, message: str, hint: str | None, *, damaged: bool = False
    ) -> None:
        self._problems.append(Problem(*self._spot(event.start_mark), dotted(location), message, hint))
        if damaged:
            self._damaged.add(location)

    def _stop(self, spot: tuple[int, int], message: str, hint: str | None) -> NoReturn:
        raise SpecError(self._file, [*self._problems, Problem(*spot, "", message, hint)], self._text)


# What PyYAML says, what boomspec says, what to do, and whether the place is where the broken part begins.
_SYNTAX = [
    (r"tab character|'\\t'", "a tab is not allowed here", "indent with spaces", False),
    (r"found character '(.)' that cannot", r"unquoted text cannot start with '\1'", "put the text in quotes", False),
    (r"mapping values", "a ':' is not allowed here", "check the indentation; quote text that contains ': '", False),
    (r"could not find expected ':'", "expected 'key: value'", "check the indentation and the ':'", True),
    (r"<block end>", "this does not fit the lines above it", "what belongs together starts in one column", False),
    (
        r"expected ',' or '.', but got '{'",
        "a '{' is not allowed here",
        'quote text with variables: "${NAME}/texts"',
        False,
    ),
    (r"expected ',' or '(.)'", r"expected ',' or '\1'", "check that the bracket of line {line} is closed", False),
    (r"expected the node content", "a value is missing here", "check the brackets and commas", False),
    (r"unexpected (?:end of stream|document)", "these quotes are not closed", "quote marks come in pairs", True),
]


def _syntax_problem(error: yaml.YAMLError) -> tuple[Any, str, str | None]:
    """Return the mark, message and hint for an error of PyYAML's scanner or parser."""
    said = str(getattr(error, "problem", None) or error)
    mark, start = getattr(error, "problem_mark", None), getattr(error, "context_mark", None)
    for pattern, message, hint, at_start in _SYNTAX:
        if match := re.search(pattern, said):
            hint = hint.replace("{line}", str(start.line + 1 if start else 0))
            return (start if at_start else mark), match.expand(message), hint
    return mark or start, f"not valid YAML: {said}", None
