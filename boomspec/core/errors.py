"""Errors that say where, what was allowed, and what to do.

`BoomspecError` is for users: the command line prints it without a traceback. `SpecError` holds every problem of a file
at once, each with its place. Any other exception that reaches the command line is a bug of boomspec.
"""

import json
import os
import re
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

EXIT_OK = 0
EXIT_RUN_FAILED = 1
EXIT_SPEC_WRONG = 2
EXIT_INTERRUPTED = 130
T = TypeVar("T")


class BoomspecError(Exception):
    """Something that a user can act on; `hint`: how."""

    exit_code = EXIT_SPEC_WRONG

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\n  hint: {self.hint}"

    def to_json(self) -> dict[str, object]:
        return {"message": self.message, "hint": self.hint}


@dataclass(frozen=True, order=True)
class Problem:
    """One thing that is wrong in a spec. Lines and columns count from 1; 0 means unknown."""

    line: int
    column: int
    where: str  # dotted path of the field: "distill.losses.kl"
    message: str = field(compare=False)
    hint: str | None = field(default=None, compare=False)
    file: str | None = field(default=None, compare=False)  # with the line, where that may be another than the spec's
    location: tuple[str | int, ...] | None = field(default=None, compare=False)  # the value's, in the composed spec


class SpecError(BoomspecError):
    """All problems of one spec file, and of the files that it extends. `others`: the texts of those, by their names."""

    def __init__(
        self, file: Path | str, problems: list[Problem], text: str = "", others: Mapping[str, str] | None = None
    ) -> None:
        self.file = str(file)
        self.others = dict(others or {})
        elsewhere = [self.file, *self.others]
        self.problems = sorted(problems, key=lambda p: (elsewhere.index(p.file) if p.file in elsewhere else 0, p))
        self.lines = {name: of_file.splitlines() for name, of_file in {**self.others, self.file: text}.items()}
        shown = [_shown(problem, problem.file or self.file, self.lines) for problem in self.problems]
        summary = f"{self.file}: {len(shown)} problem{'s' if len(shown) != 1 else ''}"
        super().__init__("\n\n".join([*shown, summary]))

    def to_json(self) -> dict[str, object]:
        fields = ("line", "column", "where", "message", "hint")
        problems = [{"file": p.file or self.file, **{name: getattr(p, name) for name in fields}} for p in self.problems]
        return {"file": self.file, "problems": problems}


def _shown(problem: Problem, file: str, lines: Mapping[str, list[str]]) -> str:
    place = f"{file}:{problem.line}:{problem.column}" if problem.line else file
    rows = [f"{place}: {f'{problem.where}: ' if problem.where else ''}{problem.message}"]
    if 0 < problem.line <= len(of_file := lines.get(file, [])):
        number = str(problem.line)
        start = max(0, problem.column - 60)  # a very long line is shown around the place
        line = of_file[problem.line - 1][start : start + 100]
        # Tabs and control characters would move the caret or the terminal's cursor.
        rows.append(f"  {number} | {''.join(c if c.isprintable() else ' ' for c in line)}")
        rows.append(f"  {' ' * len(number)} | {' ' * (problem.column - 1 - start)}^")
    return "\n".join([*rows, f"  hint: {problem.hint}"] if problem.hint else rows)


def print_error(error: BoomspecError | OSError, *, as_json: bool = False) -> int:
    """Print what ended a program, without secrets: text on stderr, or JSON on stdout. Returns the exit code."""
    if isinstance(error, OSError):
        error = BoomspecError(f"{error.filename or 'the system'}: {error.strerror or error}")
    if as_json:
        print(json.dumps({"error": redact(error.to_json())}, indent=2, allow_nan=False), flush=True)
    else:
        text = str(error) if isinstance(error, SpecError) else f"error: {error}"  # a problem begins with its place
        print(redact(text), file=sys.stderr, flush=True)
    return error.exit_code


def printable(text: str) -> str:
    """The text of a spec may hold anything; a terminal is shown escapes for what would move its cursor."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def did_you_mean(value: object, allowed: list[str]) -> str | None:
    """Return "did you mean 'x'?" for the closest allowed value, or None when nothing is close."""
    close = get_close_matches(str(value), allowed, n=1, cutoff=0.6)
    return f"did you mean '{close[0]}'?" if close else None


_SECRET_NAME = re.compile(  # HF_TOKEN and RAY_AUTH_TOKEN, but neither MAX_TOKENS nor TOKENIZERS_PARALLELISM
    r"(TOKEN(?![A-Z])|SECRET|PASSWORD|PASSWD|CREDENTIALS?|API_?KEY|ACCESS_KEY)(?!.*_(PATH|FILE|URI)$)", re.I
)
_NUMBER = re.compile(r"[+-]?[\d.,_]+(e[+-]?\d+)?", re.I)
_SHORTEST_SECRET = 8  # characters
_URL_PASSWORD = re.compile(r"(?<=://)[^/\s:@]+:[^/\s@]+(?=@)")


@cache
def is_secret_name(name: str) -> bool:
    return _SECRET_NAME.search(name) is not None


def redact(data: T, *, environment: Mapping[str, str] | None = None) -> T:
    """Return a text, or every text of plain data, without values of secret-looking variables and URL passwords.

    Everything that is written into a store passes through here: an error message of a library may quote credentials.
    What is written as JSON passes before: in JSON a secret may be escaped, and what stands for it could break it.
    """
    variables = os.environ if environment is None else environment
    found = [(name, variables.get(name, "")) for name in variables if is_secret_name(name)]
    found = [(name, value) for name, value in found if len(value) >= _SHORTEST_SECRET and not _NUMBER.fullmatch(value)]
    secrets = sorted(found, key=lambda secret: -len(secret[1]))  # longest first: one may be a part of another

    def cleaned(value: Any) -> Any:
        if isinstance(value, str):
            for name, secret in secrets:
                value = value.replace(secret, f"<{name}>")
            return _URL_PASSWORD.sub("<credentials>", value)
        if isinstance(value, Mapping):
            return {cleaned(key): cleaned(inner) for key, inner in value.items()}
        return [cleaned(inner) for inner in value] if isinstance(value, list | tuple) else value

    return cast(T, cleaned(data))


def first_line(message: object) -> str:
    """The first line of an error or a text, without secrets: for where there is room for one."""
    return redact(str(message).strip().partition("\n")[0])


def describe(error: BaseException) -> str:
    """An error as one text without secrets: those that a user can act on need no class name."""
    text = str(error) if isinstance(error, BoomspecError) else f"{type(error).__name__}: {error}"
    if not str(error) and (frames := traceback.extract_tb(error.__traceback__)):
        text += f"{frames[-1].line} ({Path(frames[-1].filename).name}:{frames[-1].lineno})"
    return redact(text.strip())
