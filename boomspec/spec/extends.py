"""Reads a spec file together with what it extends.

    file --composed--> Source(document of the merged whole, its variants, its sweep)

Mappings merge, everything else replaces, null removes. A base may be incomplete: only the merged whole is validated.
A file's variants and sweep are its own: they are not taken over by what extends it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from boomspec.core.errors import BoomspecError, Problem, SpecError, did_you_mean
from boomspec.spec.document import Document, read_document
from boomspec.spec.edits import Edit, Node, edits_of
from boomspec.spec.scalars import shown
from boomspec.spec.variables import VariableError, expanded
from boomspec.spec.yaml_reader import Location

MAX_CHAIN = 20
ANCHORS = "x-"  # sections that are there for their anchors alone: "x-training: &training {...}"
OWN = ("extends", "variants", "sweep")  # what a file says about composing; no part of the composed spec

Read = Callable[[Path], Document]


@dataclass(frozen=True)
class Composed:
    """A spec file with its bases merged in. `written`: the file by itself, for its variants and its sweep."""

    document: Document
    written: Document


def composed(path: Path, read: Read = read_document) -> Composed:
    """Read a spec file and its bases. Raises SpecError where one of them cannot be, BoomspecError for the file itself.

    `read` gives the document of a path: of a file, or of a file at a revision.
    """
    written = read(path)
    return Composed(_merged(written, read, (path,)), written)


def _merged(written: Document, read: Read, chain: tuple[Path, ...]) -> Document:
    own = _without(written, OWN)
    if "extends" not in written.data:
        return own
    base = _base(written, read, chain)
    below = _merged(base, read, (*chain, base.file))
    edits = tuple(edits_of(Node(own.data, own.tree.root), damaged=own.tree.damaged))
    merged = replace(below.with_edits(edits), file=written.file, text=written.text)
    others = {**below.others, below.file: below.text}
    others.pop(written.file, None)
    tree = replace(
        merged.tree,
        problems=(*own.problems, *(_in_file(problem, below) for problem in below.problems), *removals(below, edits)),
        damaged=own.tree.damaged | below.tree.damaged,
    )
    return replace(merged, others=others, tree=tree)


def _in_file(problem: Problem, document: Document) -> Problem:
    return problem if problem.file is not None else replace(problem, file=str(document.file))


def removals(below: Document, edits: tuple[Edit, ...]) -> Iterator[Problem]:
    """Problems of edits that remove what is not there."""
    for edit in edits:
        if edit.how == "remove" and (lost := _lost(below.data, edit.location)) is not None:
            item, names = lost
            hint = did_you_mean(item, names) or (f"there: {', '.join(names)}" if names else None)
            yield edit.problem(f"there is no {shown(item)} to be removed", hint)


def _lost(value: Any, location: Location) -> tuple[object, list[str]] | None:
    """The first item of a way that is not there, and what is in its place; None where the way leads to a value."""
    for item in location:
        if not isinstance(value, dict) or item not in value:
            return item, list(value) if isinstance(value, dict) else []
        value = value[item]
    return None


def _without(document: Document, keys: tuple[str, ...]) -> Document:
    """The document without some of its sections, and without those whose names say that they only hold anchors."""

    def stays(key: str | int) -> bool:
        return key not in keys and not str(key).startswith(ANCHORS)

    root = document.tree.root
    data = {key: value for key, value in document.data.items() if stays(key)}
    children = {key: place for key, place in root.children.items() if stays(key)}
    return replace(document, tree=replace(document.tree, data=data, root=replace(root, children=children)))


def _base(written: Document, read: Read, chain: tuple[Path, ...]) -> Document:
    """The document that a file extends. Raises SpecError at the `extends` line."""
    name = written.data["extends"]
    if not isinstance(name, str) or not name.strip():
        hint = "write the path of a spec, relative to this file: extends: base.yaml"
        raise _refused(written, f"expected the path of a file, not {shown(name)}", hint)
    try:
        name = expanded(name)
    except VariableError as error:
        raise _refused(written, error.message, error.hint) from error
    path = Path(os.path.normpath(written.file.parent / Path(name).expanduser()))
    if path.resolve() in [known.resolve() for known in chain]:
        names = [str(known) for known in chain]
        around = " extends ".join([*names[[p.resolve() for p in chain].index(path.resolve()) :], str(path)])
        raise _refused(written, "a spec cannot extend itself", around)
    if len(chain) >= MAX_CHAIN:
        raise _refused(
            written, f"a chain of more than {MAX_CHAIN} files", "extend a file nearer to the end of the chain"
        )
    try:
        return read(path)
    except SpecError:
        raise
    except BoomspecError as error:
        raise _refused(written, error.message, error.hint) from error


def _refused(written: Document, message: str, hint: str | None) -> SpecError:
    return written.error([*written.problems, written.problem(("extends",), message, hint)])
