"""Environment variables in paths: `${NAME}` and `${NAME:-default}`, as a shell has them.

They say where things lie on this machine, so no identity depends on them. One that is not set, or empty, has no value:
"${DATA}/texts" must never come to mean "/texts". Secrets are refused: where things lie is written into graphs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from boomspec.core.errors import did_you_mean, is_secret_name

_VARIABLE = re.compile(r"\$\{([^{}]*)\}?")
_BARE = re.compile(r"\$([A-Za-z_][A-Za-z0-9_]*)")
_INSIDE = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(?::-(.*))?")


class VariableError(ValueError):
    """What is wrong with a variable, and what to do about it."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def expanded(text: str, environment: Mapping[str, str] | None = None) -> str:
    """The text with its variables replaced. Raises VariableError for one that has no value, or is a secret."""
    known = os.environ if environment is None else environment

    def value(match: re.Match[str]) -> str:
        inside = _INSIDE.fullmatch(match[1])
        if inside is None or not match[0].endswith("}"):
            raise VariableError(f"'{match[0]}' is no variable", "write ${NAME} or ${NAME:-default}")
        name, default = inside[1], inside[2]
        if is_secret_name(name):
            raise VariableError(
                f"{name} looks like a secret, and where things lie is written into the store",
                "libraries read their credentials from the environment themselves",
            )
        found = known.get(name) or default
        if not found:
            hint = did_you_mean(name, list(known)) or f"export {name}=..., or give a default: ${{{name}:-...}}"
            raise VariableError(f"the environment variable {name} is {'empty' if name in known else 'not set'}", hint)
        return found

    return _VARIABLE.sub(value, text)


def has_variables(text: str) -> bool:
    """Whether what a text means depends on the environment."""
    return _VARIABLE.search(text) is not None


def bare_variable(text: str) -> str | None:
    """The name of an environment variable that is set and stands in a text without its braces, as a shell allows."""
    return next((name for name in _BARE.findall(text) if name in os.environ), None)
