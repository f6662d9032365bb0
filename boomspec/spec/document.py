"""Reads a spec file into plain data that knows its places.

    file --read_document--> Document(data, place of every value) --validation.validate--> model
    document x edits --Document.with_edits--> document

A file that is no YAML text raises SpecError. A file that can be read but holds what is not allowed (a
duplicate key, a tag) gives a Document with `problems`: `validate` reports them together with its own,
so that all problems of a file come at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from boomspec.core.errors import BoomspecError, Problem, SpecError, did_you_mean, printable
from boomspec.spec.edits import Edit, Node, edited
from boomspec.spec.yaml_reader import Location, Place, Tree, build_tree, dotted

MAX_BYTES = 1_000_000


@dataclass(frozen=True)
class Document:
    """One file: its text, and the plain data in it (dict, tuple, str, int, float, bool, None).

    A composed one is another document (`below`) with edits on top: a base and what extends it, a file and a variant.
    `others` are the texts of the other files that its places are in; `title` names what the edits make.
    """

    file: Path
    text: str
    tree: Tree
    others: dict[Path, str] = field(default_factory=dict)
    below: Document | None = None
    edits: tuple[Edit, ...] = ()
    title: str = ""

    @property
    def data(self) -> dict[str, Any]:
        return self.tree.data

    @property
    def problems(self) -> tuple[Problem, ...]:
        """What can be read but is not allowed."""
        return self.tree.problems

    def place(self, location: Location, *, key: bool = False) -> tuple[int, int]:
        """Line and column (from 1) of the value, or of its key; of its nearest existing ancestor where it is absent."""
        place = self.nearest(location)
        return place.key if key and place.key is not None else (place.line, place.column)

    def nearest(self, location: Location) -> Place:
        """The place of the value, or of its nearest existing ancestor."""
        place = self.tree.root
        for item in location:
            if item not in place.children:
                break
            place = place.children[item]
        return place

    def problem(
        self, location: Location, message: str, hint: str | None = None, *, key: bool = False, where: str | None = None
    ) -> Problem:
        line, column = self.place(location, key=key)
        shown = dotted(location) if where is None else where
        file = str(self.nearest(location).file)
        return Problem(line, column, shown, printable(message), hint and printable(hint), file, location)

    def error(self, problems: Iterable[Problem]) -> SpecError:
        others = {str(file): text for file, text in self.others.items()}
        return SpecError(self.file, list(problems), self.text, others)

    def with_edits(self, edits: tuple[Edit, ...], title: str = "") -> Document:
        """The document that results; its `below` is this one."""
        node = Node(self.data, self.tree.root)
        for edit in edits:
            node = edited(node, edit)
        tree = replace(self.tree, data=node.value, root=node.place)
        return replace(self, tree=tree, below=self, edits=edits, title=title)

    def is_damaged(self, location: Location) -> bool:
        """Whether the value is, or lies inside of, one that could not be read and so has a problem already."""
        return any(location[:length] in self.tree.damaged for length in range(len(location) + 1))


def read_document(path: Path) -> Document:
    """Read a spec file. Raises BoomspecError where it cannot be opened, SpecError where it is no YAML mapping."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise _unreadable(path, error) from error
    if len(data) > MAX_BYTES:
        hint = "a spec is a short text: is this the right file?"
        raise SpecError(path, [Problem(0, 0, "", f"larger than {MAX_BYTES:,} bytes", hint)])
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        place = _end(data[: error.start].decode("utf-8"))
        looks = ": it looks like UTF-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
        problem = Problem(*place, "", f"not UTF-8 text (byte 0x{data[error.start]:02x}){looks}", "save it as UTF-8")
        raise SpecError(path, [problem], _printable(data.decode("utf-8", errors="replace"))) from None
    return parse_document(text, path)


def parse_document(text: str, file: Path | str = "<text>") -> Document:
    """Parse the text of a spec; `file` is only its name. Raises SpecError where it is no YAML mapping."""
    file = Path(file)
    if hidden := list(_HIDDEN.finditer(text))[:10]:
        clean = _printable(text)
        raise SpecError(file, [_hidden_problem(match, clean) for match in hidden], clean)
    return Document(file, text, build_tree(text, file=file))


# What YAML forbids, and the line breaks and marks that editors do not show.
_HIDDEN = re.compile("[^\t\n\r\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")


def _printable(text: str) -> str:
    """The text with one sign for each hidden character, so that lines and columns are those of an editor."""
    return _HIDDEN.sub("\ufffd", text)


def _hidden_problem(match: re.Match[str], text: str) -> Problem:
    place = _end(text[: match.start()])
    if match.start() == 0 and match[0] == "\ufeff":
        return Problem(*place, "", "the file starts with a byte order mark", "save it as UTF-8 without one")
    hint = "remove it, or write it as an escape inside of double quotes"
    return Problem(*place, "", f"the character U+{ord(match[0]):04X} is not allowed", hint)


def _end(text: str) -> tuple[int, int]:
    """Line and column (from 1) just behind a text."""
    lines = f"{_printable(text)}|".splitlines()
    return len(lines), len(lines[-1])


def _unreadable(path: Path, error: Exception) -> BoomspecError:
    """The error for a file that cannot be opened, with the specs that stand where it was looked for."""
    folder = path if isinstance(error, IsADirectoryError) else path.parent
    try:
        names = sorted(p.name for p in folder.iterdir() if p.suffix in (".yaml", ".yml"))
    except (OSError, ValueError):
        names = []
    match error:
        case IsADirectoryError():
            hint = f"give a file in it: {', '.join(names[:5])}" if names else "give a spec file"
            return BoomspecError(f"{path} is a folder, not a spec file", hint=hint)
        case FileNotFoundError() | NotADirectoryError():
            first = ", ".join([*names[:5], "..."] if len(names) > 5 else names)
            here = f".yaml files in {folder}: {first}" if names else f"there is no .yaml file in {folder}"
            return BoomspecError(f"{path}: no such file", hint=did_you_mean(path.name, names) or here)
        case PermissionError():
            return BoomspecError(f"{path}: reading it is not permitted", hint="check the file's permissions")
        case _:
            return BoomspecError(f"{str(path)!r}: cannot be read: {error}", hint="give the path of a spec file")
