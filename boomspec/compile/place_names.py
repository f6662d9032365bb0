"""What the files and folders of a spec are called on every machine: never by an absolute path."""

from __future__ import annotations

import os
from pathlib import Path

from boomspec.compile.places import path_text
from boomspec.compile.text_files import home_path, plain_part
from boomspec.spec.sections.data import DataSpec
from boomspec.spec.spec_file import SpecFile
from boomspec.spec.variables import has_variables


def text_name(data: DataSpec, place: tuple[str | int, ...] = ("data", "files")) -> str:
    """What the text is called: its corpus, or its entries."""
    if data.corpus is not None and "held_out" not in place:
        return data.corpus
    written = [Path(text) for text in _written(data, place)]
    return ", ".join(str(p.relative_to(plain_part(p).parent)) if p.is_absolute() else str(p) for p in written)


def file_names(file: SpecFile, files: list[Path], place: tuple[str | int, ...] = ("data", "files")) -> list[str]:
    """What the text's files are called on every machine: their paths from where the spec's entries start."""
    data = file.spec.data
    assert data is not None
    if data.corpus is not None and "held_out" not in place:
        bases = [Path(os.path.commonpath([path.parent for path in files]))]
    else:
        written = _written(data, place)
        parts = [plain_part(home_path(path_text(file, (*place, i), text))) for i, text in enumerate(written)]
        # What a variable says differs from machine to machine, also where it leads into the spec's own folder.
        bases = [part for part, text in zip(parts, written, strict=True) if has_variables(text)]
        bases += [*(file.folder((*place, i)) for i in range(len(written))), *parts]
    # As texts: a corpus of many files in a sweep of many experiments would be slow with paths.
    starts = [str(base / "_")[:-1] for base in bases]
    return [next((str(f)[len(start) :] for start in starts if str(f).startswith(start)), f.name) for f in files]


def _written(data: DataSpec, place: tuple[str | int, ...]) -> tuple[str, ...]:
    if "held_out" not in place:
        return data.files or ()
    return (data.held_out.files if data.held_out is not None else None) or ()
