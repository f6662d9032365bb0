"""Fields and values of a spec as people read them, on one line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

_READ = {
    "data": "contents of data",
    "held_out_text": "contents of data.held_out.files",
    "teacher": "contents of teacher.model",
    "student": "contents of student.model",
    "tokenizer": "tokenizer of teacher.model",
    "lm_eval_tasks": "contents of evaluate.tasks",
}
_DIGEST = 12


def title(path: Sequence[str]) -> str:
    """A field: "distill.losses.kl.weight", "contents of data"."""
    if len(path) == 2 and path[0] == "sources":
        return _READ.get(path[1], path[1])
    return ".".join(path)


def shown(value: Any, *, width: int = 60) -> str:
    """A value, cut in its middle where it is long; "-" where there is none."""
    text = _text(value)
    if len(text) <= width:
        return text
    half = (width - 5) // 2
    return f"{text[:half]} ... {text[-half:]}"


def listed(names: Iterable[str], *, most: int = 6) -> str:
    """Some names and how many more."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def count(number: int, noun: str) -> str:
    """1 task, 2 tasks."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _text(value: Any) -> str:
    match value:
        case None:
            return "-"
        case str():
            return value
        case {"hub": hub, "revision": revision, **rest}:
            more = "".join(f" {key} {item}" for key, item in rest.items() if key in ("config", "split"))
            return f"{hub}@{str(revision)[:_DIGEST]}{more}"
        case {"files": files, "id": digest}:
            return f"{files}, {digest}"
        case {"sha256": dict(files)}:
            return ", ".join(f"{name} {digest[:_DIGEST]}" for name, digest in files.items())
        case {"lm_eval": _} | {"folder": _}:
            named = {"lm_eval": "lm-eval", "folder": "folder"}
            return ", ".join(f"{named.get(key, key)} {str(item)[:_DIGEST]}" for key, item in value.items())
        case dict() if not value:
            return "{}"
        case dict():
            return "{" + ", ".join(f"{key}: {_text(item)}" for key, item in value.items()) + "}"
        case list():
            return "[" + ", ".join(map(_text, value)) + "]"
        case _:
            return json.dumps(value)
