"""Reads a spec file together with the files that it extends.

    file --composed--> document of the merged whole, document of the file alone

Mappings merge, everything else replaces, null removes. A base may be incomplete: only the merged whole is validated.
A file does not inherit the variants and the sweep of its base.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from boomspec.core.errors import BoomspecError, SpecError
from boomspec.spec.document import Document, edits_of
from boomspec.spec.variables import VariableError, expanded
from boomspec.spec.yaml_reader import shown

MAX_CHAIN = 20
ANCHORS = "x-"  # sections that only hold anchors: "x-training: &training {...}"
OWN = ("extends", "variants", "sweep")  # how a file is composed; no part of the composed spec

Read = Callable[[Path], Document]


def composed(path: Path, read: Read) -> tuple[Document, Document]:
    """The document of a spec file with its bases merged in, and that of the file alone, for its variants and its sweep.

    `read` returns the document of a path: of a file, or of a file at a revision. Raises SpecError where a base cannot
    be read, BoomspecError where the file itself cannot.
    """
    written = read(path)
    return _merged(written, read, (path,)), written


def _merged(written: Document, read: Read, chain: tuple[Path, ...]) -> Document:
    kept = {k: v for k, v in written.root.value.items() if k not in OWN and not k.startswith(ANCHORS)}
    root = replace(written.root, value=kept)
    if "extends" not in written.root.value:
        return replace(written, root=root)
    base = _base(written, read, chain)
    below = _merged(base, read, (*chain, base.file))
    merged = below.edited(tuple(edits_of(root)))
    others = {file: text for file, text in ({below.file: below.text} | below.others).items() if file != written.file}
    problems = (*written.problems, *merged.problems)
    return replace(merged, file=written.file, text=written.text, problems=problems, others=others)


def _base(written: Document, read: Read, chain: tuple[Path, ...]) -> Document:
    """The document that a file extends. Raises SpecError at the `extends` line."""

    def refused(message: str, hint: str | None) -> SpecError:
        return written.error([*written.problems, written.problem(("extends",), message, hint)])

    name = written.root.value["extends"].plain()
    if not isinstance(name, str) or not name.strip():
        hint = "write the path of a spec, relative to this file: extends: base.yaml"
        raise refused(f"expected the path of a file, not {shown(name)}", hint)
    try:
        name = expanded(name)
    except VariableError as error:
        raise refused(error.message, error.hint) from error
    path = Path(os.path.normpath(written.file.parent / Path(name).expanduser()))
    resolved = [known.resolve() for known in chain]
    if path.resolve() in resolved:
        circle = [*chain[resolved.index(path.resolve()) :], path]
        raise refused("a spec cannot extend itself", " extends ".join(map(str, circle)))
    if len(chain) >= MAX_CHAIN:
        raise refused(f"a chain of more than {MAX_CHAIN} files", "extend a file nearer to the end of the chain")
    try:
        return read(path)
    except SpecError:
        raise
    except BoomspecError as error:
        raise refused(error.message, error.hint) from error
