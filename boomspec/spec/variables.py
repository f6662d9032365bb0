"""Expands environment variables in paths: `${NAME}` and `${NAME:-default}`, as in a shell.

They say where files are on this machine, so no identity depends on them. A variable that is not set or empty is an
error: "${DATA}/texts" must never become "/texts". Secrets are refused: paths are written into graphs.
"""

import os
import re
from collections.abc import Mapping

from boomspec.core.errors import BoomspecError, did_you_mean, is_secret_name

_VARIABLE = re.compile(r"\$\{([^{}]*)\}?")
_BARE = re.compile(r"\$([A-Za-z_][A-Za-z0-9_]*)")
_INSIDE = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(?::-(.*))?")


class VariableError(BoomspecError):
    """A variable that has no value, or must not be used."""


def expanded(text: str, environment: Mapping[str, str] | None = None) -> str:
    """The text with its variables replaced. Raises VariableError for one that has no value, or is a secret."""
    known = os.environ if environment is None else environment

    def value(match: re.Match[str]) -> str:
        inside = _INSIDE.fullmatch(match[1])
        if inside is None or not match[0].endswith("}"):
            raise VariableError(f"'{match[0]}' is no variable", hint="write ${NAME} or ${NAME:-default}")
        name, default = inside[1], inside[2]
        if is_secret_name(name):
            hint = "libraries read their credentials from the environment themselves"
            raise VariableError(
                f"{name} looks like a secret, and where things lie is written into the store", hint=hint
            )
        found = known.get(name) or default
        if not found:
            hint = did_you_mean(name, list(known)) or f"export {name}=..., or give a default: ${{{name}:-...}}"
            state = "empty" if name in known else "not set"
            raise VariableError(f"the environment variable {name} is {state}", hint=hint)
        return found

    return _VARIABLE.sub(value, text)


def has_variables(text: str) -> bool:
    """Whether a text depends on the environment."""
    return _VARIABLE.search(text) is not None


def bare_variable(text: str) -> str | None:
    """The name of an environment variable that is set and is written without braces, as a shell allows."""
    return next((name for name in _BARE.findall(text) if name in os.environ), None)
