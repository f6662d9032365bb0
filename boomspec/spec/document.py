"""Parse a spec file into a tree with line numbers, and apply edits to it.

    file --read_document--> Document --edited--> Document

A document is a tree of nodes that know their places. A duplicate key, a tag and the like are `problems` of a document:
`validate` reports them together with its own, so that all problems of a file come at once.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from boomspec.core.errors import BoomspecError, Problem, SpecError, did_you_mean, printable
from boomspec.spec.yaml_reader import Location, Node, YamlReader, dotted, shown

MAX_BYTES = 1_000_000
_LONGEST = 500  # characters of a message, which may quote a value


@dataclass(frozen=True)
class Edit:
    """One change: merge a mapping (an empty one where there is none), set a value, or remove one."""

    how: Literal["merge", "set", "remove", "omit"]  # nothing to be removed is a problem, nothing to be omitted is not
    location: Location
    node: Node
    title: str = ""  # of the variant or the point of the sweep that it belongs to

    @property
    def is_leaf(self) -> bool:
        return self.how != "merge" or not self.node.value

    def covers(self, location: Location) -> bool:
        """Whether a location is, or is inside of, what this edit changes."""
        return location[: len(self.location)] == self.location

    def problem(self, message: str, hint: str | None = None) -> Problem:
        message = f"{self.title}: {message}" if self.title else message
        where = dotted(self.location)
        return Problem(*self.node.spot, where, _short(message), hint and _short(hint), str(self.node.file))


def _short(text: str) -> str:
    text = printable(text)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def edits_of(node: Node, title: str = "", location: Location = ()) -> Iterator[Edit]:
    """The edits of an override, from the top down: mappings merge, everything else replaces, null removes."""
    if node.damaged:
        return  # it changes nothing
    if not isinstance(node.value, dict):
        yield Edit("remove" if node.value is None else "set", location, node, title)
        return
    yield Edit("merge", location, node, title)
    for key, inner in node.value.items():
        yield from edits_of(inner, title, (*location, key))


@dataclass(frozen=True, eq=False)
class Document:
    """The text of a spec file and the tree of its values.

    A composed one is another document (`below`) with edits on top: a base and what extends it, or a file and a variant.
    """

    file: Path
    text: str
    root: Node
    problems: tuple[Problem, ...] = ()
    others: dict[Path, str] = field(default_factory=dict)  # the texts of the other files that its nodes are from
    below: "Document | None" = None
    edits: tuple[Edit, ...] = ()
    title: str = ""  # of what the edits make

    @cached_property
    def data(self) -> dict[str, Any]:
        """The values as plain data: dict, tuple, str, int, float, bool, None."""
        data: dict[str, Any] = self.root.plain()
        return data

    def nearest(self, location: Location) -> Node:
        """The node at a location, or its nearest existing ancestor."""
        return self._nodes(location)[-1]

    def is_damaged(self, location: Location) -> bool:
        """Whether the value is, or is inside of, one that could not be read."""
        return any(node.damaged for node in self._nodes(location))

    def problem(
        self, location: Location, message: str, hint: str | None = None, *, key: bool = False, where: str | None = None
    ) -> Problem:
        """A problem of the value, or of its key; where it is absent, at its nearest ancestor."""
        node, where = self.nearest(location), printable(dotted(location) if where is None else where)
        place = node.spot if key else (node.line, node.column)
        return Problem(*place, where, _short(message), hint and _short(hint), str(node.file), location)

    def unexpected(self, location: Location, expected: str, hint: str | None, *, where: str | None = None) -> Problem:
        """A problem at the key of a value that is another one than expected, or empty."""
        value = self.nearest(location).plain()
        found = "an empty one" if value in ({}, ()) else shown(value)
        return self.problem(location, f"expected {expected}, not {found}", hint, key=True, where=where)

    def error(self, problems: Iterable[Problem]) -> SpecError:
        return SpecError(self.file, list(problems), self.text, {str(file): text for file, text in self.others.items()})

    def edited(self, edits: tuple[Edit, ...], title: str = "") -> "Document":
        """The document after these edits. Edits that remove what is not there become problems."""
        root, problems = self.root, [*self.problems]
        for edit in edits:
            root = _edited(root, edit)
            if edit.how == "remove" and len(nodes := self._nodes(edit.location)) <= len(edit.location):
                lost, names = edit.location[len(nodes) - 1], nodes[-1].value
                names = list(names) if isinstance(names, dict) else []
                hint = did_you_mean(lost, names) or (f"there: {', '.join(names)}" if names else None)
                problems.append(edit.problem(f"there is no {shown(lost)} to be removed", hint))
        return replace(self, root=root, problems=tuple(problems), below=self, edits=edits, title=title)

    def _nodes(self, location: Location) -> list[Node]:
        nodes = [self.root]
        for item in location:
            if (node := nodes[-1].get(item)) is None:
                break
            nodes.append(node)
        return nodes


def _edited(node: Node | None, edit: Edit, depth: int = 0) -> Node:
    """The node after one edit. What the edit does not touch is shared with the old node."""
    values = dict(node.value) if node is not None and isinstance(node.value, dict) else {}
    if depth == len(edit.location):
        damaged = node is not None and node.damaged
        return edit.node if edit.how == "set" else replace(edit.node, value=values, damaged=damaged)
    key = str(edit.location[depth])
    if edit.how in ("remove", "omit") and depth == len(edit.location) - 1:
        values.pop(key, None)
    else:
        values[key] = _edited(values.get(key), edit, depth + 1)
    return replace(node or edit.node, value=values)


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
        return parse_document(data.decode("utf-8"), path)
    except UnicodeDecodeError as error:
        place = _end(data[: error.start].decode("utf-8"))
        looks = ": it looks like UTF-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
        problem = Problem(*place, "", f"not UTF-8 text (byte 0x{data[error.start]:02x}){looks}", "save it as UTF-8")
        raise SpecError(path, [problem], _marked(data.decode("utf-8", errors="replace"))) from None


def parse_document(text: str, file: Path | str = "<text>") -> Document:
    """Parse the text of a spec; `file` is only its name. Raises SpecError where it is no YAML mapping."""
    file = Path(file)
    problems = []
    for match in list(_hidden(text).finditer(text))[:10]:
        message = f"the character U+{ord(match[0]):04X} is not allowed"
        hint = "remove it, or write it as an escape inside of double quotes"
        if match.start() == 0 and match[0] == "\ufeff":
            message, hint = "the file starts with a byte order mark", "save it as UTF-8 without one"
        problems.append(Problem(*_end(text[: match.start()]), "", message, hint))
    if problems:
        raise SpecError(file, problems, _marked(text))
    root, found = YamlReader(text, file).read()
    return Document(file, text, root, tuple(found))


# What YAML forbids, and line breaks and marks that editors do not show. One sign replaces each where the text is shown,
# so that lines and columns are those of an editor.
_SEEN = "\t\n\r\x20-\x7e"
_SEEN_BEYOND_ASCII = "\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff"


def _hidden(text: str) -> re.Pattern[str]:
    """What is one such character of a text. Most texts are ASCII, and for more it takes milliseconds to compile."""
    return re.compile(f"[^{_SEEN}]" if text.isascii() else f"[^{_SEEN}{_SEEN_BEYOND_ASCII}]")


def _marked(text: str) -> str:
    return _hidden(text).sub("\ufffd", text)


def _end(text: str) -> tuple[int, int]:
    lines = _marked(f"{text}|").splitlines()
    return len(lines), len(lines[-1])


def _unreadable(path: Path, error: Exception) -> BoomspecError:
    """The error for a file that cannot be opened; its hint names the specs in that folder."""
    is_folder = isinstance(error, IsADirectoryError)
    folder = path if is_folder else path.parent
    try:
        names = sorted(p.name for p in folder.iterdir() if p.suffix in (".yaml", ".yml"))
    except (OSError, ValueError):
        names = []
    first = ", ".join([*names[:5], "..."] if len(names) > 5 else names)
    if is_folder:
        hint = f"give a file in it: {first}" if names else "give a spec file"
        return BoomspecError(f"{path} is a folder, not a spec file", hint=hint)
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        present = f".yaml files in {folder}: {first}" if names else f"there is no .yaml file in {folder}"
        return BoomspecError(f"{path}: no such file", hint=did_you_mean(path.name, names) or present)
    if isinstance(error, PermissionError):
        return BoomspecError(f"{path}: reading it is not permitted", hint="check the file's permissions")
    return BoomspecError(f"{str(path)!r}: cannot be read: {error}", hint="give the path of a spec file")
