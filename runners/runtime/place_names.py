"""What folders are called in the errors of a task: nobody knows a hidden folder of the store by its path.

A task's work folder is gone by the time that its error is read; what it read from there was made of a teacher that has
a name. A source that the store keeps for machines that do not have it, or that lies in the hub's cache, has one, too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from boomspec.core.errors import BoomspecError
from boomspec.store.sources import source_name
from runners.runtime.job import Input

_MODEL, _TOKENIZER = "model", "tokenizer"  # as in `runners.modeling.models` and `runners.data.tokens`, which load more
_CACHED = re.compile(r"[^\s'\"]*/models--([^/\s]+?)--([^/\s]+)/snapshots/[0-9a-f]{40}")  # of the hub


def names_of(task: str, inputs: Mapping[str, Input], work: Path) -> dict[Path, str]:
    """What the folders of a task are called. `work`: where it makes what it makes."""
    sources = {role: source_name(found.source) for role, found in inputs.items() if found.source is not None}
    of = next((f" of {sources[role]}" for role in ("teacher", "model", "tokenizer") if role in sources), "")
    names = {
        work / _MODEL: f"the model that '{task}' makes{of}",
        work / _TOKENIZER: f"the tokenizer that '{task}' takes{of}",
        work: f"the work folder of '{task}'",
    }
    for role, name in sources.items():
        source = inputs[role].source
        folder = Path(source.location["folder"]) if source is not None and "folder" in source.location else None
        if source is not None and folder is not None and source.id in folder.parts:
            names[folder] = name
    return names


@contextmanager
def named(names: Mapping[Path, str]) -> Iterator[None]:
    """Have an error that is raised in here call folders by their names."""
    try:
        yield
    except Exception as error:
        rename(error, names)
        raise


def rename(error: Exception, names: Mapping[Path, str]) -> None:
    """Put names in the place of paths in what an error says."""
    if isinstance(error, BoomspecError):
        error.message = renamed(error.message, names)
        error.hint = None if error.hint is None else renamed(error.hint, names)
    error.args = tuple(renamed(said, names) if isinstance(said, str) else said for said in error.args)
    if isinstance(error, OSError) and isinstance(error.filename, str):
        error.filename = renamed(error.filename, names)


def renamed(text: str, names: Mapping[Path, str]) -> str:
    """A text with names in the place of paths."""
    for folder in sorted(names, key=lambda path: len(path.parts), reverse=True):
        text = text.replace(str(folder), names[folder])
    return _CACHED.sub(r"\1/\2", text)
