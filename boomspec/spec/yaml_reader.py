"""Reads YAML text into nodes: values that know their line and column.

    text --PyYAML's events--> Node

A spec is written in the JSON subset of YAML, with comments, block style, unquoted text, anchors and merge keys, by the
rules of YAML 1.2: `no` and `12:30` are text, 3e-4 is a number. Whatever two readers could understand differently is a
problem, not a guess: duplicate keys, 010, tags. `yaml.compose` would not do: it stops at the first unknown alias,
forgets which tags were written and recurses without a limit.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import yaml

from boomspec.core.errors import Problem, SpecError, did_you_mean

MAX_NODES = 10_000  # with aliases expanded: a few lines of aliases can expand to billions of values
MAX_DEPTH = 50
MERGE = "<<"

Location = tuple[str | int, ...]
"""The path from the top of a spec to a value: ("interpolate", "sizes", 2)."""


@dataclass(frozen=True, eq=False)
class Node:
    """A value of a spec file and its place: a scalar, a dict of nodes by key, or a tuple of nodes."""

    value: Any
    file: Path
    line: int
    column: int
    key: tuple[int, int] | None = None  # line and column of its key
    text: str | None = None  # an unquoted scalar as it is written
    damaged: bool = False  # it replaces a value that could not be read, and that has a problem already

    def get(self, item: str | int) -> "Node | None":
        if isinstance(self.value, dict):
            return self.value.get(item)
        inside = isinstance(self.value, tuple) and isinstance(item, int) and item < len(self.value)
        return self.value[item] if inside else None

    def children(self) -> "list[Node]":
        if isinstance(self.value, dict):
            return list(self.value.values())
        return list(self.value) if isinstance(self.value, tuple) else []

    def plain(self) -> Any:
        """The value as plain data. Lists are tuples, as strict validation of frozen models wants them."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        return tuple(node.plain() for node in self.value) if isinstance(self.value, tuple) else self.value

    def extent(self) -> tuple[int, int]:
        """How many values it holds, itself included, and how many levels."""
        inner = [node.extent() for node in self.children()]
        levels = isinstance(self.value, dict | tuple) + max((levels for _, levels in inner), default=0)
        return 1 + sum(count for count, _ in inner), levels

    @property
    def spot(self) -> tuple[int, int]:
        """Line and column of its key, where it has one, else its own."""
        return self.key or (self.line, self.column)


def dotted(location: Location) -> str:
    """Return a location as people write it: "distill.losses.kl", "sizes[2]", "variants.'no cosine'"."""
    parts = [
        f"[{item}]" if isinstance(item, int) else f".{item}" if re.fullmatch(r"[\w/-]+", item) else f".{item!r}"
        for item in location
    ]
    return "".join(parts).removeprefix(".")


class YamlReader:
    """One pass over the parser's events. Recursion is bounded by MAX_DEPTH, memory by MAX_NODES."""

    def __init__(self, text: str, file: Path) -> None:
        self._text, self._file = text, file
        self._lines = text.splitlines() or [""]
        self._events: Iterator[Any] = yaml.parse(text, Loader=yaml.SafeLoader)
        self._mark: Any = None  # end of the last event
        self._anchors: dict[str, Node | None] = {}  # None: the value is still being read
        self._count = 0
        self._problems: list[Problem] = []

    def read(self) -> tuple[Node, list[Problem]]:
        """Read one mapping; also what is readable but not allowed. Raises SpecError for no or too large YAML."""
        self._next()  # the stream's start
        event = self._next()
        if isinstance(event, yaml.StreamEndEvent):
            self._stop(None, "the file holds no data", "a spec is a mapping: lines of 'key: value'")
        if event.version or event.tags:
            self._problem(event, (), "directives (%) are not allowed", "remove the line")
        event = self._next()
        root = self._node(event, ())
        if not isinstance(root.value, dict):
            message = f"expected a mapping at the top of the file, not {shown(root.value)}"
            self._stop(event.start_mark, message, "a spec is a mapping: lines of 'key: value'")
        self._next()  # the document's end
        if not isinstance(event := self._next(), yaml.StreamEndEvent):
            self._problem(event, (), "a second document starts here", "one file holds one spec: remove the '---'")
        return root, self._problems

    def _next(self) -> Any:
        try:
            event = next(self._events)
        except yaml.YAMLError as error:
            text = str(getattr(error, "problem", None) or error)
            mark, start = getattr(error, "problem_mark", None), getattr(error, "context_mark", None)
            for pattern, message, hint, at_start in _SYNTAX:
                if match := re.search(pattern, text):
                    hint = hint.replace("{line}", str(start.line + 1 if start else 0))
                    self._stop(start if at_start else mark, match.expand(message), hint)
            self._stop(mark or start, f"not valid YAML: {text}", None)
        except (ValueError, OverflowError):  # of chr() and int(): "\UFFFFFFFF", %YAML 1.999...
            self._stop(self._mark, "not valid YAML: a number after this place is out of range", None)
        self._mark = event.end_mark
        return event

    def _node(self, event: Any, location: Location) -> Node:
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event, location)
        self._add(1, len(location), event)
        anchor, tagged = event.anchor, event.tag is not None
        if anchor in self._anchors:
            self._problem(event, location, f"anchor '&{anchor}' is defined twice", "give it another name")
        if tagged:
            self._problem(event, location, "tags (!) are not allowed", "remove it; put text in quotes")
        if anchor is not None:
            self._anchors[anchor] = None
        if isinstance(event, yaml.ScalarEvent):
            node = self._scalar(event, location)
        elif isinstance(event, yaml.SequenceStartEvent):
            items: list[Node] = []
            while not isinstance(inner := self._next(), yaml.SequenceEndEvent):
                items.append(self._node(inner, (*location, len(items))))
            node = self._at(event, tuple(items))
        else:
            node = self._mapping(event, location)
        node = replace(node, damaged=True) if tagged else node
        if anchor is not None:
            self._anchors[anchor] = node
        return node

    def _scalar(self, event: Any, location: Location) -> Node:
        if not event.style:
            try:
                return self._at(event, plain_scalar(event.value), text=event.value)
            except ValueError as error:
                self._problem(event, location, str(error), "put it in quotes if it is text")
        elif hidden := re.search("[\0\ud800-\udfff]", event.value):
            self._problem(event, location, f"text cannot hold the character {hidden[0]!r}", None)
        else:
            return self._at(event, event.value)
        return self._at(event, None, damaged=True)

    def _mapping(self, start: Any, location: Location) -> Node:
        entries: dict[str, Node] = {}
        merged: dict[str, Node] | None = None
        damaged = False
        while not isinstance(event := self._next(), yaml.MappingEndEvent):
            if isinstance(event, yaml.ScalarEvent) and not event.style and event.value == MERGE:
                if merged is not None:
                    self._problem(event, location, "a second merge key (<<)", "merge several in one: <<: [*a, *b]")
                found = self._merged(event, location)
                damaged |= found is None
                merged = (found or {}) | (merged or {})
                continue
            known = len(self._problems)
            key = self._node(event, (*location, "?")).value
            readable = len(self._problems) == known and isinstance(key, str)
            if len(self._problems) == known and not readable:
                message = f"a key must be text, not {shown(key)}"
                self._problem(event, location, message, "put it in quotes if it is the key")
            node = self._node(self._next(), (*location, key if readable else "?"))
            if readable and key in entries:
                message = f"duplicate key {shown(key)}, first given on line {entries[key].spot[0]}"
                self._problem(event, location, message, "keep one of the two")
            elif readable:
                entries[key] = replace(node, key=self._spot(event.start_mark))
        # A key that is written out takes precedence over a merged one, wherever it is.
        return self._at(start, entries | {k: v for k, v in (merged or {}).items() if k not in entries}, damaged=damaged)

    def _merged(self, key: Any, location: Location) -> dict[str, Node] | None:
        """What a merge key brings of one mapping or of several, the first of which has precedence; None: no mapping."""
        node = self._node(self._next(), (*location, MERGE))
        sources = node.value if isinstance(node.value, tuple) and node.value else [node]
        found: dict[str, Node] = {}
        for source in sources:
            if isinstance(source.value, dict):
                found = source.value | found
            elif not source.damaged:
                hint = "name a mapping above by its alias (<<: *name), or several: <<: [*a, *b]"
                self._problem(key, location, f"a merge key (<<) takes a mapping, not {shown(source.value)}", hint)
        return found if all(isinstance(source.value, dict) for source in sources) else None

    def _alias(self, event: Any, location: Location) -> Node:
        node = self._anchors.get(event.anchor)
        if node is None:
            message, hint = f"alias '*{event.anchor}' is inside of its own anchor", "a value cannot hold itself"
            if event.anchor not in self._anchors:
                message = f"alias '*{event.anchor}' has no anchor above it"
                hint = did_you_mean(event.anchor, list(self._anchors)) or "put text that starts with '*' in quotes"
            self._problem(event, location, message, hint)
            return self._at(event, None, damaged=True)
        count, levels = node.extent()
        self._add(count, len(location) + levels, event)
        return self._at(event, node.value, text=node.text, damaged=node.damaged)

    def _add(self, count: int, depth: int, event: Any) -> None:
        self._count += count
        if self._count > MAX_NODES:
            hint = "aliases count as often as they are used" if self._anchors else "a spec is a short text"
            self._stop(event.start_mark, f"more than {MAX_NODES:,} values in one file", hint)
        if depth > MAX_DEPTH:
            self._stop(event.start_mark, f"nested more than {MAX_DEPTH} levels deep", None)

    def _at(self, event: Any, value: Any, *, text: str | None = None, damaged: bool = False) -> Node:
        return Node(value, self._file, *self._spot(event.start_mark), text=text, damaged=damaged)

    def _spot(self, mark: Any) -> tuple[int, int]:
        """Line and column of a mark, from 1. The end of the file counts as the end of its last line."""
        if mark is None:
            return 1, 1
        if mark.line >= len(self._lines):
            return len(self._lines), len(self._lines[-1]) + 1
        return mark.line + 1, mark.column + 1

    def _problem(self, event: Any, location: Location, message: str, hint: str | None) -> None:
        spot = self._spot(event.start_mark)
        self._problems.append(Problem(*spot, dotted(location), message, hint, str(self._file)))

    def _stop(self, mark: Any, message: str, hint: str | None) -> NoReturn:
        raise SpecError(self._file, [*self._problems, Problem(*self._spot(mark), "", message, hint)], self._text)


# A pattern in PyYAML's message, our message, what to do, and whether to point at where the broken part begins.
_SYNTAX = [
    (r"tab character|'\\t'", "a tab is not allowed here", "indent with spaces", False),
    (r"found character '(.)' that cannot", r"unquoted text cannot start with '\1'", "put the text in quotes", False),
    (r"mapping values", "a ':' is not allowed here", "check the indentation; quote text that contains ': '", False),
    (r"could not find expected ':'", "expected 'key: value'", "check the indentation and the ':'", True),
    (r"<block end>", "this does not fit the lines above it", "what belongs together starts in one column", False),
    (r"or '.', but got '{'", "a '{' is not allowed here", 'quote text with variables: "${NAME}/texts"', False),
    (r"expected ',' or '(.)'", r"expected ',' or '\1'", "check that the bracket of line {line} is closed", False),
    (r"expected the node content", "a value is missing here", "check the brackets and commas", False),
    (r"unexpected (?:end of stream|document)", "these quotes are not closed", "quote marks come in pairs", True),
]

_DIGITS = r"[0-9]+(?:_[0-9]+)*"
_INTEGER = re.compile(rf"[-+]?{_DIGITS}|0o[0-7]+|0x[0-9a-fA-F]+")
_AMBIGUOUS = re.compile(r"[-+]?0[0-9_]*[0-9]")
_FLOAT = re.compile(rf"[-+]?(?:\.[0-9]+|{_DIGITS}(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_CONSTANTS = {
    **dict.fromkeys(["", "~", "null", "Null", "NULL"], None),
    **dict.fromkeys(["true", "True", "TRUE"], True),
    **dict.fromkeys(["false", "False", "FALSE"], False),
}


def plain_scalar(text: str) -> object:
    """Return what an unquoted scalar means. Raises ValueError where that is not clear or not a finite 64-bit number."""
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _AMBIGUOUS.fullmatch(text):
        raise ValueError(f"{shown(text)}: a number cannot start with 0 (some read it as octal)")
    if _NOT_FINITE.fullmatch(text):
        raise ValueError(f"{text} is not a finite number")
    digits = text.replace("_", "")
    if _INTEGER.fullmatch(text):
        # Python itself refuses to convert thousands of digits.
        if len(text) < 100 and -(2**63) <= (value := int(digits, 0)) < 2**63:
            return value
    elif not _FLOAT.fullmatch(text):
        return text
    elif math.isfinite(number := float(digits)):
        return number
    raise ValueError(f"{text:.40} is too large a number")


def plain_or_none(text: str) -> object:
    """What an unquoted scalar means, None where that is not clear."""
    try:
        return plain_scalar(text)
    except ValueError:
        return None


def shown(value: object) -> str:
    """Return a short, printable text for a value of a document, as YAML would have it."""
    if isinstance(value, str):
        return repr(value if len(value) <= 60 else value[:57] + "...")
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, dict):
        return "a mapping"
    return "a list" if isinstance(value, list | tuple) else str(value)
