"""The experiments of a spec file: the file's own, its variants, and the points of its sweep.

    file or file#label --load_experiments--> SpecFiles, each with its label and axes

An *experiment* is the file's own ("base") or one variant, at one point of the sweep.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from boomspec.core.errors import Problem, SpecError
from boomspec.core.graph import NAME, no_such_experiment
from boomspec.spec.document import Document, edits_of, read_document
from boomspec.spec.extends import Read, composed
from boomspec.spec.problems import for_each
from boomspec.spec.spec_file import Spec, SpecFile
from boomspec.spec.sweep import Axis, points, read_axes
from boomspec.spec.validate import validate
from boomspec.spec.yaml_reader import Location, Node, dotted, shown

BASE = "base"
_OF_THE_FILE = {
    **dict.fromkeys(("boomspec", "name"), "it is the same for all experiments of a file"),
    **dict.fromkeys(("extends", "variants", "sweep"), "it stands at the top of a file"),
}
_OF_THE_RUN = ("store", "cpus")  # of `execution`: all experiments share them


@dataclass(frozen=True)
class Entry:
    """One experiment that is not validated yet."""

    label: str
    axes: dict[str, str]
    document: Document

    def with_document(self, document: Document) -> Entry:
        return replace(self, document=document)

    def load(self) -> SpecFile:
        return SpecFile(validate(Spec, self.document), self.document, self.label, self.axes)


def split_address(address: str | os.PathLike[str]) -> tuple[Path, str | None]:
    """A spec's path and the label after the '#', None where there is none."""
    text = os.fspath(address)
    if "#" not in text or Path(text).exists():
        return Path(text), None
    path, _, label = text.partition("#")
    return Path(path), label


def load_experiments(address: str | os.PathLike[str], *, read: Read = read_document) -> tuple[SpecFile, ...]:
    """The experiments of a spec file, or the one that `file#label` names; a plain file is one, with label "".

    `read` returns the document of a path: of a file, or of a file at a revision. Raises SpecError with the problems of
    all of them; BoomspecError where the file cannot be read or has no experiment of that label.
    """
    return _load(address, read)


def load_spec(address: str | os.PathLike[str], *, read: Read = read_document) -> SpecFile:
    """The one experiment of a plain spec or of an address; of a file with several the first, the file's own.

    The others are not validated.
    """
    return _load(address, read, first=True)[0]


def _load(address: str | os.PathLike[str], read: Read, *, first: bool = False) -> tuple[SpecFile, ...]:
    path, label = split_address(address)
    entries, problems = _entries(*composed(path, read))
    if label is not None and not problems:
        labels = [entry.label for entry in entries]
        entries = [entry for entry in entries if entry.label == label]
        if not entries:
            raise no_such_experiment(path, label, labels)
    try:
        files = for_each(entries[:1] if first else entries, Entry.load)
    except SpecError as error:
        problems = [*problems, *error.problems]
    if problems:
        raise entries[0].document.error(problems)
    return tuple(files)


def _entries(merged: Document, written: Document) -> tuple[list[Entry], list[Problem]]:
    """The experiments that can be put together, and what is wrong with the others."""
    variants, problems = _variants(merged, written)
    axes, more = read_axes(written, 1 + len(variants))
    problems += more
    grid = points(axes)
    entries = []
    has_variants = written.root.get("variants") is not None
    for name, below in {BASE: merged, **variants}.items():
        clashes = [] if name == BASE else list(_clashes(below, axes))
        problems += clashes
        for axes_of, edits in grid if not clashes else ():
            title = ",".join(edit.title for edit in edits)
            label = ",".join(filter(None, [name if has_variants else "", title]))
            document = below.edited(edits, title) if edits else below
            entries.append(Entry(label, {**({"variant": name} if has_variants else {}), **axes_of}, document))
    return entries, problems


def _variants(merged: Document, written: Document) -> tuple[dict[str, Document], list[Problem]]:
    variants: dict[str, Document] = {}
    problems: list[Problem] = []
    section = written.root.get("variants")
    if section is None or section.damaged:
        return variants, problems
    if not isinstance(section.value, dict) or not section.value:
        hint = "give each a name: variants: {no-kl: {distill: {losses: {kl: null}}}}"
        return variants, [written.unexpected(("variants",), "a mapping of names to overrides", hint)]
    for name, override in section.value.items():
        wrong = list(_wrong_variant(written, name, override))
        problems += wrong
        if not wrong and not override.damaged:
            title = f"variant '{name}'"
            variants[name] = merged.edited(tuple(edits_of(override, title)), title)
    return variants, problems


def _wrong_variant(written: Document, name: str, override: Node) -> Iterator[Problem]:
    top: Location = ("variants", name)
    if name == BASE:
        message = f"{shown(name)} is the file's own experiment"
        yield written.problem(top, message, "use another name", key=True, where="variants")
    elif not re.fullmatch(NAME, name):
        hint = "use letters, digits, dots, dashes, underscores"
        yield written.problem(top, f"{shown(name)} is not a plain name", hint, key=True, where="variants")
    elif not isinstance(override.value, dict) or not override.value:
        if not override.damaged:
            hint = "write the fields that differ: {distill: {losses: {kl: null}}}"
            yield written.unexpected(top, "a mapping of fields", hint)
    else:
        for key, reason in _OF_THE_FILE.items():
            if key in override.value:
                yield written.problem((*top, key), f"a variant cannot set '{key}': {reason}", key=True)
        execution = override.get("execution")
        for key in _OF_THE_RUN:
            if execution is not None and execution.get(key) is not None:
                message = f"a variant cannot set '{key}': its experiments run together with the others"
                yield written.problem((*top, "execution", key), message, key=True)


def _clashes(variant: Document, axes: tuple[Axis, ...]) -> Iterator[Problem]:
    """What a variant says about a field that is swept: the sweep would overwrite it."""
    for edit in variant.edits:
        for axis in axes if edit.is_leaf else ():
            shorter = min(len(edit.location), len(axis.location))
            if edit.location[:shorter] == axis.location[:shorter]:
                yield edit.problem(f"the sweep sets {dotted(axis.location)} in every variant")
