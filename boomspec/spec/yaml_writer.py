"""Writes plain data as YAML text for people: scalars, values on one line, blocks with a comment after each value."""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from boomspec.spec.yaml_reader import plain_or_none

_PLAIN = re.compile(r"[A-Za-z0-9_./~][\w./@+%-]*(?: [\w./@+%-]+)*", re.ASCII)
_BOOLEANS_OF_YAML_1_1 = {"yes", "no", "on", "off", "y", "n"}
_WIDTH, _COMMENT_COLUMN = 100, 44

Path = tuple[str, ...]
Comment = Callable[[Path], str]  # the comment on the value at a path; "" is none


def scalar(value: Any) -> str:
    if not isinstance(value, str):
        return json.dumps(value)
    plain = _PLAIN.fullmatch(value) and value.lower() not in _BOOLEANS_OF_YAML_1_1 and plain_or_none(value) == value
    return value if plain else json.dumps(value, ensure_ascii=False)


def inline(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{scalar(key)}: {inline(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(inline, value)) + "]"
    return scalar(value)


def lines(data: dict[str, Any], comment: Comment, *, at: Path = ()) -> Iterator[str]:
    """The lines of a mapping, with an empty line before each section at the top level.

    A mapping whose values all have the same comment is written on one line where it fits, else with the comment on its
    first line.
    """
    for key, value in data.items():
        path = (*at, key)
        start = f"{'  ' * len(at)}{scalar(key)}:"
        short = f"{start} {inline(value)}"
        comments = _comments(value, comment, path)
        common = next(iter(comments)) if len(comments) == 1 else None
        is_mapping = isinstance(value, dict) and bool(value)
        if is_mapping and not at:
            yield ""
        if not is_mapping or (common is not None and len(short) <= _WIDTH and at):
            yield _commented(short, common or "")
            continue
        yield _commented(start, common or "")
        yield from lines(value, comment if common is None else lambda _: "", at=path)


def _comments(value: Any, comment: Comment, path: Path) -> set[str]:
    if not isinstance(value, dict) or not value:
        return {comment(path)}
    return {found for key, item in value.items() for found in _comments(item, comment, (*path, key))}


def _commented(text: str, comment: str) -> str:
    return f"{text:{_COMMENT_COLUMN}}  # {comment}" if comment else text
