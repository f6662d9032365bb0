"""The experiments of a spec file: the file's own, its variants, and the points of its sweep, on top of what it extends.

    file or file#label --load_experiments--> SpecFiles, each with its label and axes

An *experiment* is the file's own ("base") or one variant, at one point of the sweep. A file may extend another one, and
a variant its file: mappings merge, everything else replaces, null removes. A base may be incomplete: only the merged
whole is validated. A file does not inherit the variants and the sweep of its base.
"""

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from boomspec.core.errors import BoomspecError, Problem, SpecError
from boomspec.core.graph import NAME, no_such_experiment
from boomspec.spec.document import Document, edits_of, read_document
from boomspec.spec.problems import for_each
from boomspec.spec.spec_file import Entry, SpecFile
from boomspec.spec.sweep import OF_THE_FILE, OWN, points, read_axes
from boomspec.spec.validate import Sections
from boomspec.spec.variables import VariableError, expanded
from boomspec.spec.yaml_reader import Location, Node, dotted, shown

BASE = "base"
MAX_CHAIN = 20
ANCHORS = "x-"  # sections that only hold anchors: "x-training: &training {...}"
_OF_THE_FILE = OF_THE_FILE | dict.fromkeys(OWN, "it stands at the top of a file")
_OF_THE_RUN = ("store", "cpus")  # of `execution`: all experiments share them

Address = str | os.PathLike[str]
Read = Callable[[Path], Document]  # the document of a path: of a file, or of a file at a revision


def split_address(address: Address) -> tuple[Path, str | None]:
    """A spec's path and the label after the '#', None where there is none."""
    text = os.fspath(address)
    if "#" not in text or Path(text).exists():
        return Path(text), None
    path, _, label = text.partition("#")
    return Path(path), label


def load_spec(address: Address, *, read: Read = read_document) -> SpecFile:
    """The one experiment of a plain spec or of an address; of several the file's own, and only that is validated."""
    return load_experiments(address, read=read, most=1)[0]


def load_experiments(address: Address, *, read: Read = read_document, most: int | None = None) -> tuple[SpecFile, ...]:
    """The experiments of a spec file, or those that `file#label` names; a plain file is one, with label "".

    A label in part, such as a variant without its seed, names all experiments whose labels have that part.

    Raises SpecError with the problems of all of them, or of the first `most`; BoomspecError where the file cannot be
    read or has no experiment of that label.
    """
    path, label = split_address(address)
    written = read(path)
    entries, problems = _entries(_merged(written, read, (path,)), written)
    if label is not None and not problems:
        labels = [entry.label for entry in entries]
        entries = [entry for entry in entries if entry.label == label] or _points(entries, label)
        if not entries:
            raise no_such_experiment(path, label, labels)
    try:
        sections: Sections = {}
        files = for_each(entries[:most], lambda entry: entry.validated(sections))
    except SpecError as error:
        problems = [*problems, *error.problems]
    if problems:
        raise entries[0].document.error(problems)
    return tuple(files)


def _points(entries: list[Entry], label: str) -> list[Entry]:
    parts = set(label.split(","))
    return [entry for entry in entries if parts <= set(entry.label.split(","))]


def _merged(written: Document, read: Read, chain: tuple[Path, ...]) -> Document:
    """The document of a file with what it extends. Raises SpecError where a base cannot be read."""
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


def _entries(merged: Document, written: Document) -> tuple[list[Entry], list[Problem]]:
    """The experiments that can be put together, and what is wrong with the others."""
    variants, problems = _variants(merged, written)
    axes, more = read_axes(written, 1 + len(variants))
    problems += more
    entries = []
    has_variants = written.root.get("variants") is not None
    for name, below in {BASE: merged, **variants}.items():
        # The sweep would overwrite what a variant says about a field that is swept.
        clashes = [
            edit.problem(f"the sweep sets {dotted(axis.location)} in every variant")
            for edit in (below.edits if name != BASE else ())
            for axis in (axes if edit.is_leaf else ())
            if all(one == other for one, other in zip(edit.location, axis.location, strict=False))
        ]
        problems += clashes
        for axes_of, edits in points(axes) if not clashes else ():
            title = ",".join(edit.title for edit in edits)
            label = ",".join(filter(None, [name if has_variants else "", title]))
            document = below.edited(edits, title) if edits else below
            entries.append(Entry(document, label, {**({"variant": name} if has_variants else {}), **axes_of}))
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
