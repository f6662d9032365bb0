"""Find packages that a task's Python needs and that are not installed, with what installs them.

lm-eval has extras for them (`ifeval`, `math`, ...), and says so once a task is loaded: here it is known from the text
of the files.
"""

import ast
import importlib.util
import re
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from importlib import metadata
from pathlib import Path


def missing_packages(files: Iterable[Path]) -> tuple[str, str] | None:
    """The names of the packages, and a line that installs them; None where all are there.

    A machine without lm-eval only plans, and cannot tell.
    """
    if importlib.util.find_spec("lm_eval") is None:
        return None
    paths = [path for path in files if path.suffix == ".py" and path.is_file()]
    needed = {name for path in paths for name in _needed(path, path.stat().st_mtime_ns)}
    beside = {path.stem for path in paths} | {path.parent.name for path in paths}
    missing = sorted(name for name in needed - beside if not _is_installed(name))
    if not missing:
        return None
    extras = dict.fromkeys(_extra_with(name) or name for name in missing)
    listed = [f"'lm-eval[{name}]'" if name in _extras() else name for name in extras]
    return ", ".join(missing), f"pip install {' '.join(listed)}"


@cache
def _is_installed(name: str) -> bool:
    return name in sys.modules or name in sys.stdlib_module_names or importlib.util.find_spec(name) is not None


@cache
def _needed(path: Path, changed: int) -> frozenset[str]:
    try:
        return frozenset(_imported(ast.parse(path.read_bytes()).body))
    except (OSError, SyntaxError, ValueError):
        return frozenset()


def _imported(body: Iterable[ast.stmt]) -> Iterator[str]:
    """Packages that a module imports as it is loaded; not those that it can do without."""
    for node in body:
        match node:
            case ast.Import(names=names):
                yield from (alias.name.partition(".")[0] for alias in names)
            case ast.ImportFrom(module=str(module), level=0):
                yield module.partition(".")[0]
            case ast.Try(body=inner, handlers=handlers):
                caught = [statement for handler in handlers for statement in handler.body]
                if any(isinstance(statement, ast.Raise) for one in caught for statement in ast.walk(one)):
                    yield from _imported(inner)


@cache
def _extras() -> dict[str, frozenset[str]]:
    """lm-eval's extras: by name the packages that they bring, in PyPI's spelling."""
    try:
        required = metadata.requires("lm_eval") or []
    except metadata.PackageNotFoundError:
        return {}
    found: dict[str, set[str]] = {}
    for line in required:
        if extra := re.search(r"extra\s*==\s*['\"]([\w.-]+)['\"]", line):
            name = re.match(r"[\w.-]+", line)
            found.setdefault(extra[1], set()).add(_spelled(name[0]) if name else "")
    return {name: frozenset(packages) for name, packages in found.items()}


def _extra_with(module: str) -> str | None:
    """The smallest of lm-eval's extras that brings a module."""
    wanted = _spelled(module)
    fitting = [
        (len(packages), name)
        for name, packages in _extras().items()
        if any(one == wanted or one.startswith(f"{wanted}-") for one in packages)
    ]
    return min(fitting)[1] if fitting else None


def _spelled(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
