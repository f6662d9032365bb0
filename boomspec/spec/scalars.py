"""What unquoted text means (the scalars of YAML 1.2, numbers finite and of 64 bits), and how values are shown."""

from __future__ import annotations

import math
import re

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
    """Return what an unquoted scalar means. Raises ValueError where that is not clear or not a finite number."""
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _AMBIGUOUS.fullmatch(text):
        raise ValueError(f"{shown(text)}: a number cannot start with 0 (some read it as octal)")
    if _INTEGER.fullmatch(text):
        # Python itself refuses to convert thousands of digits; no quantity needs more than 64 bits.
        value = int(text.replace("_", ""), 0) if len(text) < 100 else 2**64
        if not -(2**63) <= value < 2**63:
            raise ValueError(f"{text:.40} is too large a number")
        return value
    if _FLOAT.fullmatch(text):
        number = float(text.replace("_", ""))
        if not math.isfinite(number):
            raise ValueError(f"{text:.40} is too large a number")
        return number
    if _NOT_FINITE.fullmatch(text):
        raise ValueError(f"{text} is not a finite number")
    return text


def shown(value: object) -> str:
    """Return a short, printable text for a value of a document, as YAML would have it."""
    if isinstance(value, str):
        return repr(value if len(value) <= 60 else value[:57] + "...")
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, dict):
        return "a mapping"
    return "a list" if isinstance(value, list | tuple) else str(value)
