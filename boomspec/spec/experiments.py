"""The experiments of a spec file: the file's own, its variants, and the points of its sweep.

    file or file#label --load_experiments--> SpecFiles, each with its label and axes

An *experiment* is the file's own ("base") or one variant, at one point of the sweep. `extends` is
`boomspec.spec.extends`, the grid `boomspec.spec.sweep`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from boomspec.core.errors import Problem, SpecError
from boomspec.core.graph import NAME, no_such_experiment
from boomspec.spec.document import Document, read_document
from boomspec.spec.edits import Node, edits_of
from boomspec.spec.extends import Composed, Read, composed, removals
from boomspec.spec.problems import for_each
from boomspec.spec.scalars import shown
from boomspec.spec.spec_file import Spec, SpecFile
from boomspec.spec.sweep import Axis, points, read_axes
from boomspec.spec.validate import validate
from boomspec.spec.yaml_reader import Location, dotted

BASE = "base"
_OF_THE_FILE = {
    **dict.fromkeys(("boomspec", "name"), "it is the same for all experiments of a file"),
    **dict.fromkeys(("extends", "variants", "sweep"), "it stands at the top of a file"),
}
_OF_THE_RUN = ("store", "cpus")  # of `execution`: there is one for all experiments


@dataclass(frozen=True)
class Entry:
    """One experiment that is not validated yet."""

    label: str
    axes: dict[str, str]
    document: Document


def split_address(address: str | os.PathLike[str]) -> tuple[Path, str | None]:
    """A spec's path and the label behind the '#', None where there is none."""
    text = os.fspath(address)
    if "#" not in text or Path(text).exists():
        return Path(text), None
    path, _, label = text.partition("#")
    return Path(path), label


def load_experiments(address: str | os.PathLike[str], *, read: Read = read_document) -> tuple[SpecFile, ...]:
    """The experiments of a spec file, or the one that `file#label` names; a plain file is one, with label "".

    `read` gives the document of a path: of a file, or of a file at a revision. Raises SpecError with the problems of
    all of them; BoomspecError where the file cannot be read or has no experiment of that label.
    """
    return _loaded(*_named(address, read))


def load_spec(address: str | os.PathLike[str], *, read: Read = read_document) -> SpecFile:
    """The one experiment of a plain spec or of an address; of a file with several the first, the file's own.

    The others are not validated.
    """
    entries, problems = _named(address, read)
    return _loaded(entries[:1], problems)[0]


def _named(address: str | os.PathLike[str], read: Read) -> tuple[list[Entry], list[Problem]]:
    """The experiments that an address names, and what is wrong with how they are put together."""
    path, label = split_address(address)
    entries, problems = _entries(composed(path, read))
    if label is not None and not problems:
        labels = [entry.label for entry in entries]
        entries = [entry for entry in entries if entry.label == label]
        if not entries:
            raise no_such_experiment(path, label, labels)
    return entries, problems


def _loaded(entries: list[Entry], problems: list[Problem]) -> tuple[SpecFile, ...]:
    files: list[SpecFile] = []
    try:
        files = for_each(entries, _load, lambda document: validate(Spec, document))
    except SpecError as error:
        problems = [*problems, *error.problems]
    if problems:
        raise entries[0].document.error(problems)
    return tuple(files)


def _load(entry: Entry) -> SpecFile:
    return SpecFile(validate(Spec, entry.document), entry.document, entry.label, entry.axes)


def _entries(source: Composed) -> tuple[list[Entry], list[Problem]]:
    """The experiments that can be put together, and what is wrong with how the others are asked for."""
    variants, problems = _variants(source)
    axes, more = read_axes(source.written, Spec, 1 + len(variants))
    problems += more
    grid = points(axes)
    entries = []
    for name, below in {BASE: source.document, **variants}.items():
        clashes = [] if name == BASE else list(_clashes(below, axes))
        problems += clashes
        if clashes:
            continue
        for point in grid:
            label = ",".join(filter(None, [name if "variants" in source.written.data else "", point.label]))
            of_variant = {"variant": name} if "variants" in source.written.data else {}
            document = below.with_edits(point.edits, point.label) if point.edits else below
            entries.append(Entry(label, {**of_variant, **point.axes}, document))
    return entries, problems


def _variants(source: Composed) -> tuple[dict[str, Document], list[Problem]]:
    written, variants, problems = source.written, {}, []
    overrides = written.data.get("variants", {})
    if "variants" in written.data and (not isinstance(overrides, dict) or not overrides):
        if not written.is_damaged(("variants",)):
            hint = "give each a name: variants: {no-kl: {distill: {losses: {kl: null}}}}"
            what = "an empty one" if overrides == {} else shown(overrides)
            message = f"expected a mapping of names to overrides, not {what}"
            problems.append(written.problem(("variants",), message, hint, key=True))
        return {}, problems
    for name, override in overrides.items():
        wrong = list(_wrong_variant(written, name, override))
        problems += wrong
        if wrong or written.is_damaged(("variants", name)):
            continue
        top, title = ("variants", name), f"variant '{name}'"
        damaged = {place[2:] for place in written.tree.damaged if place[:2] == top}
        edits = tuple(edits_of(Node(override, written.nearest(top)), title, damaged=damaged))
        document = source.document.with_edits(edits, title)
        refused = tuple(removals(source.document, edits))
        tree = replace(document.tree, problems=(*document.tree.problems, *refused))
        variants[name] = replace(document, tree=tree)
    return variants, problems


def _wrong_variant(written: Document, name: str, override: object) -> Iterator[Problem]:
    top: Location = ("variants", name)
    if not re.fullmatch(NAME, name) or name == BASE:
        message = (
            f"{shown(name)} is the file's own experiment" if name == BASE else f"{shown(name)} is not a plain name"
        )
        hint = "use another name" if name == BASE else "use letters, digits, dots, dashes, underscores"
        yield written.problem(top, message, hint, key=True, where="variants")
    elif not isinstance(override, dict) or not override:
        if not written.is_damaged(top):
            what = "an empty one" if override == {} else shown(override)
            hint = "write the fields that differ: {distill: {losses: {kl: null}}}"
            yield written.problem(top, f"expected a mapping of fields, not {what}", hint, key=True)
    else:
        for key, reason in _OF_THE_FILE.items():
            if key in override:
                yield written.problem((*top, key), f"a variant cannot set '{key}': {reason}", key=True)
        execution = override.get("execution")
        for key in _OF_THE_RUN:
            if isinstance(execution, dict) and key in execution:
                message = f"a variant cannot set '{key}': its experiments run together with the others"
                yield written.problem((*top, "execution", key), message, key=True)


def _clashes(variant: Document, axes: tuple[Axis, ...]) -> Iterator[Problem]:
    """What a variant says about a field that is swept: one of the two would not count."""
    for edit in variant.edits:
        for axis in axes if edit.is_leaf else ():
            shorter = min(len(edit.location), len(axis.location))
            if edit.location[:shorter] == axis.location[:shorter]:
                yield edit.problem(f"the sweep sets {dotted(axis.location)} in every variant")
