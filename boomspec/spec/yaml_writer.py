"""Plain data as YAML text that people read: scalars, values on one line, nested blocks with a comment a line."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from boomspec.spec.scalars import plain_scalar

_PLAIN = re.compile(r"[A-Za-z0-9_./~][\w./@+%-]*(?: [\w./@+%-]+)*", re.ASCII)
_ELSEWHERE = {"yes", "no", "on", "off", "y", "n"}  # booleans of YAML 1.1
_WIDTH, _COMMENT_COLUMN = 100, 44

Path = tuple[str, ...]
Comment = Callable[[Path], str]  # what to say about the value at a path; "" says nothing


def scalar(value: Any) -> str:
    """A text, number, boolean or null as YAML has it."""
    if not isinstance(value, str):
        return json.dumps(value)
    plain = _PLAIN.fullmatch(value) and value.lower() not in _ELSEWHERE and plain_scalar_or_none(value) == value
    return value if plain else json.dumps(value, ensure_ascii=False)


def plain_scalar_or_none(text: str) -> object:
    """What an unquoted scalar means, None where that is not clear."""
    try:
        return plain_scalar(text)
    except ValueError:
        return None


def inline(value: Any) -> str:
    """A value on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{scalar(key)}: {inline(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(inline, value)) + "]"
    return scalar(value)


def lines(data: dict[str, Any], comment: Comment, *, at: Path = ()) -> Iterator[str]:
    """The lines of a mapping, those at the top level apart from each other where they are sections.

    A mapping whose values have all the same comment stands on one line, where it fits.
    """
    for key, value in data.items():
        path = (*at, key)
        said = _comments(value, comment, path)
        short = f"{'  ' * len(at)}{scalar(key)}: {inline(value)}"
        section = not at and isinstance(value, dict) and value
        if section:
            yield ""
        if not isinstance(value, dict) or not value or (len(said) == 1 and len(short) <= _WIDTH and not section):
            yield _commented(short, next(iter(said), ""))
            continue
        # What all of it is, its first line says.
        common = next(iter(said)) if len(said) == 1 else None
        yield _commented(f"{'  ' * len(at)}{scalar(key)}:", common or "")
        yield from lines(value, comment if common is None else lambda _: "", at=path)


def _comments(value: Any, comment: Comment, path: Path) -> set[str]:
    """The comments of all values inside."""
    if not isinstance(value, dict) or not value:
        return {comment(path)}
    return {found for key, item in value.items() for found in _comments(item, comment, (*path, key))}


def _commented(text: str, comment: str) -> str:
    return f"{text:{_COMMENT_COLUMN}}  # {comment}" if comment else text
