"""What the files and folders of a spec are called on every machine: never by an absolute path."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

from boomspec.language.data import DataSpec
from boomspec.language.spec import SpecFile


def shown_path(path: str) -> str:
    """A path as a spec says it, without the places of one machine: of an absolute path its last part."""
    return Path(path).name if Path(path).is_absolute() else path


def text_name(data: DataSpec) -> str:
    """What the text is called: its corpus, or its patterns."""
    if data.corpus is not None:
        return data.corpus
    patterns = [Path(pattern) for pattern in data.files or ()]
    return ", ".join(str(p.relative_to(_plain_part(p).parent)) if p.is_absolute() else str(p) for p in patterns)


def file_names(file: SpecFile, files: list[Path]) -> list[str]:
    """What the text's files are called on every machine: their paths from where the spec's patterns start."""
    data = file.spec.data
    assert data is not None
    if data.corpus is not None:
        bases = [Path(os.path.commonpath([path.parent for path in files]))]
    else:
        bases = [file.folder(("data", "files", i)) for i in range(len(data.files or ()))]
        bases += [_plain_part(Path(pattern).expanduser()) for pattern in data.files or ()]
    # As texts: a corpus of many files in a sweep of many experiments would be slow with paths.
    starts = [str(base / "_")[:-1] for base in bases]
    return [next((str(f)[len(start) :] for start in starts if str(f).startswith(start)), f.name) for f in files]


def _plain_part(pattern: Path) -> Path:
    """The folders of a pattern in front of its first wildcard, and not its last part."""
    parts = pattern.parts[:-1]
    return Path(*itertools.takewhile(lambda part: not set(part) & set("*?["), parts))
