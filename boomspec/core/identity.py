"""Canonical JSON and sha256 helpers; the task id itself is computed in `core/graph.py`.

The encoder refuses what has no canonical form: an identity that depends on a `repr`, the order of a set or a NaN would
change silently between two machines.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path

_ALLOWED = "null, booleans, integers, finite floats, strings, lists and string-keyed objects"

_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode


def canonical_json(value: object) -> str:
    """The one JSON text for `value`. Raises TypeError for what is no JSON value, ValueError for NaN and infinities."""
    return _encode(_checked(value, "$"))


def canonical_plain(value: object) -> str:
    """What `canonical_json` returns for what pydantic has turned into JSON values, several times as fast."""
    text = _encode(value)
    return canonical_json(value) if "-0.0" in text else text


def canonical_texts(texts: Mapping[str, str]) -> str:
    """What `canonical_json` returns for an object of texts, several times as fast again."""
    text = json.encoder.encode_basestring_ascii
    return "{" + ",".join([f"{text(key)}:{text(texts[key])}" for key in sorted(texts)]) + "}"


def digest(value: object) -> str:
    """The sha256 (hex) of the canonical JSON of `value`."""
    return text_digest(canonical_json(value))


def text_digest(canonical: str) -> str:
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_digest(folder: Path) -> str:
    """The sha256 (hex) of the files below a folder and their places in it, what Python compiles left out."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and "__pycache__" not in path.parts]
    return digest({path.relative_to(folder).as_posix(): file_digest(path) for path in files})


def _checked(value: object, where: str) -> object:
    # bool before int: bool is a subclass, and exact types keep out numpy scalars and str enums.
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        if not math.isfinite(value):
            raise ValueError(f"{where}: {value} has no canonical form")
        return value + 0.0  # -0.0 and 0.0 are the same number
    if type(value) in (list, tuple):
        return [_checked(item, f"{where}[{i}]") for i, item in enumerate(value)]  # type: ignore[arg-type, var-annotated]  # `in` does not narrow
    if type(value) is dict:
        for key in value:
            if type(key) is not str:
                raise TypeError(f"{where}: key {key!r} is not a string")
        return {key: _checked(item, f"{where}.{key}") for key, item in value.items()}
    raise TypeError(f"{where}: {type(value).__name__} has no canonical form (allowed: {_ALLOWED})")
